"""Needles in a long context: a model made to find them, over every kind of KV memory.

One layer, whose weights are written down. Some tokens are pairs of a name and an answer; a token that asks for a name attends to
the pair of that name, and its logits are those of the answer. Other tokens have names and answers drawn at random, so that a
key, a value or a sum that is off lets them drown the needle: it has 64,000 of them against it.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.model_driver import ModelDriver
from support.model_zoo import write_checkpoint

from lightllm.models.registry import load_model
from lightllm.ops.kv_codes import FORMATS

NAMES, ANSWERS, FILLERS, PART, LAYERS = 16, 8, 200, 32, 1
HIDDEN, HEAD = 4 * PART, 64
ASK, PAIR = FILLERS, FILLERS + NAMES
VOCAB = PAIR + NAMES * ANSWERS
SHARPNESS = 24.0
"""Score of a needle; of a filler about this times a cosine of two random directions."""


def directions(count: int, generator: torch.Generator) -> torch.Tensor:
    drawn = torch.randn(count, PART, generator=generator)
    return drawn / drawn.norm(dim=1, keepdim=True)


def needle_model(folder: Path) -> Path:
    """Parts of the hidden state: what a token is called, what it answers, what it asks for, what was found."""
    generator = torch.Generator().manual_seed(0)
    names, answers = directions(NAMES, generator), directions(ANSWERS, generator)
    embedding = torch.zeros(VOCAB, 4, PART)
    embedding[:FILLERS, 0], embedding[:FILLERS, 1] = (directions(FILLERS, generator) for _ in range(2))
    embedding[ASK:PAIR, 2] = names * 2**0.5
    embedding[PAIR:, 0] = names.repeat_interleave(ANSWERS, 0)
    embedding[PAIR:, 1] = answers.repeat(NAMES, 1)
    # All are of length sqrt(2), which the norm makes sqrt(HIDDEN).
    grown = (HIDDEN / 2) ** 0.5
    slow = slice(
        HEAD // 4, HEAD // 2
    )  # dimensions that a rotation of this base does not move, and their partners
    partners = slice(HEAD // 4 + HEAD // 2, HEAD)
    half = PART // 2
    q, k, v = (torch.zeros(HEAD, 4, PART) for _ in range(3))
    for weight, part, factor in ((q, 2, SHARPNESS * HEAD**0.5 / (grown * 2**0.5)), (k, 0, 1 / grown)):
        weight[slow, part, :half] = torch.eye(half) * factor
        weight[partners, part, half:] = torch.eye(half) * factor
    v[:PART, 1] = torch.eye(PART) / grown
    o = torch.zeros(4, PART, HEAD)
    o[3, :, :PART] = torch.eye(PART)
    head = torch.zeros(VOCAB, 4, PART)
    head[:ANSWERS, 3] = answers
    layer = "model.layers.0."
    tensors = {
        "model.embed_tokens.weight": embedding.view(VOCAB, HIDDEN),
        "model.norm.weight": torch.ones(HIDDEN),
        "lm_head.weight": head.view(VOCAB, HIDDEN),
        f"{layer}input_layernorm.weight": torch.ones(HIDDEN),
        f"{layer}post_attention_layernorm.weight": torch.ones(HIDDEN),
        f"{layer}self_attn.q_proj.weight": q.view(HEAD, HIDDEN),
        f"{layer}self_attn.k_proj.weight": k.view(HEAD, HIDDEN),
        f"{layer}self_attn.v_proj.weight": v.view(HEAD, HIDDEN),
        f"{layer}self_attn.o_proj.weight": o.view(HIDDEN, HEAD),
        f"{layer}mlp.gate_proj.weight": torch.zeros(8, HIDDEN),
        f"{layer}mlp.up_proj.weight": torch.zeros(8, HIDDEN),
        f"{layer}mlp.down_proj.weight": torch.zeros(HIDDEN, 8),
    }
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": HIDDEN, "intermediate_size": 8,
        "num_hidden_layers": LAYERS, "num_attention_heads": 1, "num_key_value_heads": 1, "head_dim": HEAD, "vocab_size": VOCAB,
        "max_position_embeddings": 1 << 17, "rms_norm_eps": 1e-6, "rope_theta": 1e24, "tie_word_embeddings": False,
        "torch_dtype": "bfloat16", "hidden_act": "silu", "bos_token_id": 0, "eos_token_id": 1,
    }  # fmt: skip
    halves = {name: tensor.bfloat16() for name, tensor in tensors.items()}
    write_checkpoint(folder, halves, config, tokenizer=False)
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return needle_model(tmp_path_factory.mktemp("needle") / "model")


@pytest.mark.parametrize("length", [2_000, pytest.param(64_000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kv_type", ["None", *FORMATS])
def test_every_needle_is_found(model: Path, kv_type: str, length: int) -> None:
    generator = torch.Generator().manual_seed(length)
    answers = torch.randint(ANSWERS, (NAMES,), generator=generator)
    context = torch.randint(FILLERS, (length,), generator=generator)
    places = torch.randperm(length, generator=generator)[:NAMES]
    context[places] = PAIR + torch.arange(NAMES) * ANSWERS + answers
    driver = ModelDriver(
        load_model(str(model), data_type=None, device=torch.device("cpu")), 2, length + NAMES, kv_type=kv_type
    )
    for chunk in context.split(1024):
        driver.step([(0, chunk.tolist())], logits=False)
    driver.share_prefix(0, 1, length)
    asked = torch.arange(ASK, PAIR)
    in_a_chunk = driver.step([(0, asked.tolist())])
    one_by_one = torch.cat([driver.step([(1, [int(token)])], num_decode=1) for token in asked])
    for logits in (in_a_chunk, one_by_one):
        assert logits[:, :ANSWERS].argmax(1).tolist() == answers.tolist()
