"""Where training begins: two attention heads that copy what followed the same token before ("induction heads", Olsson et al. 2022).

A call repeats names of the offer and numbers of the question. A model of this size finds out how to copy only after far more
text than minutes of one core can read; begun with these heads it copies from the first steps on, and training does the rest.

    layer 0, head 0   looks at the token before, and notes its code in 32 dimensions of the residual stream
    layer 1, head 0   looks where the noted code is that of the present token, and proposes the token that stands there
"""

from __future__ import annotations

import math

import torch
from transformers import LlamaForCausalLM

EMBEDDING_DEVIATION = 0.2
"""Large beside what a step of training adds to the residual stream, or the first steps would drown the notes."""
CONSTANT = 4.0
"""Of the one dimension of all embeddings that is the same; in units of an embedding's standard deviation."""
NOTE, PROPOSAL = 3.0, 10.0
"""How strongly the heads write, in the same units."""
PREVIOUS_SHARPNESS, MATCH_SHARPNESS = 6.0, 1.4
POSITION_WEIGHTS = (2.0, 1.5, 1.0, 0.7)
"""Of the rotary pairs that turn fastest: together they tell the distance 1 from all others."""


@torch.no_grad()
def begin_with_copying_heads(model: LlamaForCausalLM) -> None:
    """Sets the weights of the first heads in the first two layers; the other heads that share their keys do the same."""
    config = model.config
    size, width = config.head_dim, config.hidden_size
    pairs = size // 2
    unit = EMBEDDING_DEVIATION
    model.model.embed_tokens.weight *= unit / config.initializer_range
    model.model.norm.weight *= (
        config.initializer_range / unit
    )  # so that logits begin as small as without this
    generator = torch.Generator().manual_seed(0)
    code = torch.randn(size, width, generator=generator) / math.sqrt(width)
    notes, proposals = (torch.linalg.qr(torch.randn(width, size, generator=generator))[0] for _ in range(2))
    model.model.embed_tokens.weight[:, 0] = CONSTANT * unit
    for columns in (code.T, notes, proposals):
        columns[0] = 0.0
    shared = config.num_attention_heads // config.num_key_value_heads

    for layer in model.model.layers:  # at first everything else is silent
        layer.self_attn.o_proj.weight.zero_()
        layer.mlp.down_proj.weight.zero_()
    before = model.model.layers[0].self_attn
    speeds = config.rope_parameters["rope_theta"] ** (-torch.arange(pairs) / pairs)
    strength = torch.zeros(pairs)
    strength[: len(POSITION_WEIGHTS)] = torch.tensor(POSITION_WEIGHTS).sqrt() * PREVIOUS_SHARPNESS / CONSTANT
    query = torch.cat([strength, torch.zeros(pairs)])
    key = torch.cat([strength * speeds.cos(), strength * speeds.sin()])  # as if it stood one place later
    for head in range(shared):
        rows = slice(head * size, (head + 1) * size)
        before.q_proj.weight[rows] = 0.0
        before.q_proj.weight[rows, 0] = query
    before.k_proj.weight[:size] = 0.0
    before.k_proj.weight[:size, 0] = key
    before.v_proj.weight[:size] = code
    before.o_proj.weight[:, :size] = NOTE * unit * notes

    same = model.model.layers[1].self_attn
    slow = torch.cat([torch.arange(pairs // 2, pairs), torch.arange(pairs // 2, pairs) + pairs])
    for head in range(shared):
        same.q_proj.weight[head * size : (head + 1) * size] = 0.0
        same.q_proj.weight[head * size + slow] = MATCH_SHARPNESS * code[: len(slow)]
    same.k_proj.weight[:size] = 0.0
    same.k_proj.weight[slow] = MATCH_SHARPNESS * notes.T[: len(slow)]
    same.v_proj.weight[:size] = proposals.T
    same.o_proj.weight[:, :size] = PROPOSAL * unit * proposals
