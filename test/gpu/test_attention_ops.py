"""Attention on the GPU in all its forms, dense and latent, against float32 at real sizes, on memory that was poisoned."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support.attention_cases import FORMS, make_spec, spec_on

from lightllm.ops.attention_backends.protocol import AttentionCall
from lightllm.ops.attention_backends.triton import TritonAttention
from lightllm.ops.attention_metadata import AttentionMetadata
from lightllm.ops.attention_spec import AttentionSpec
from lightllm.ops.kv_layer import KvLayer
from lightllm.ops.mla_attention import mla_context, mla_decode_attention, mla_prefill_attention

pytestmark = pytest.mark.usefixtures("poisoned")
CUDA, TRITON = torch.device("cuda"), TritonAttention()
LATENT, ROPE, NOPE, VALUE = 512, 64, 128, 128
CHECKED = 3
"""Entries of a phase that are compared: the first ones and the last."""


def random(generator: torch.Generator, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, device=CUDA, generator=generator).bfloat16()


def shuffled_metadata(
    generator: torch.Generator, q_lens: list[int], kv_lens: list[int], num_decode: int
) -> AttentionMetadata:
    """Every slot below sum(kv_lens) belongs to one entry; the next one is the hold slot."""
    slots = sum(kv_lens)
    table = torch.full((len(kv_lens), max(kv_lens)), slots, dtype=torch.int32, device=CUDA)
    order = torch.randperm(slots, device=CUDA, generator=generator).to(torch.int32).split(kv_lens)
    for row, part in enumerate(order):
        table[row, : len(part)] = part
    starts = torch.tensor([0, *q_lens]).cumsum(0)
    return AttentionMetadata(
        rows=torch.arange(len(q_lens), device=CUDA),
        q_start=starts.to(CUDA, torch.int32),
        kv_len=torch.tensor(kv_lens, dtype=torch.int32, device=CUDA),
        req_to_token=table,
        num_decode=num_decode,
        num_tokens=int(starts[-1]),
        max_q_len=max(q_lens),
        max_kv_len=max(kv_lens),
        no_prefix=q_lens[num_decode:] == kv_lens[num_decode:],
        prefill_lens=np.array([q_lens, kv_lens])[:, num_decode:],
    )


def expected(q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, form: AttentionSpec) -> torch.Tensor:
    """One entry in float32: q [q_len, heads, dim], keys and values [kv_len, kv_heads, dim], of the context's last tokens."""
    group = q.shape[1] // keys.shape[1]
    keys, values = (part.float().repeat_interleave(group, 1) for part in (keys, values))
    scores = torch.einsum("qhd,khd->hqk", q.float(), keys) * form.scale
    if form.softcap:
        scores = form.softcap * (scores / form.softcap).tanh()
    positions = torch.arange(len(keys), device=q.device)
    distance = positions[len(keys) - len(q) :, None] - positions
    if form.alibi_slopes is not None:
        scores -= form.alibi_slopes[:, None, None] * distance
    hidden = (distance < 0) | ((distance >= form.window) if form.window else False)
    scores = scores.masked_fill(hidden, -torch.inf)
    if form.sparsity is not None:
        size, offsets = form.sparsity.block_size, form.sparsity.offsets[:, None, None]
        blocks = positions // size
        far = blocks[len(keys) - len(q) :, None] - blocks >= form.sparsity.local_blocks
        between = (blocks + 1 + offsets) % form.sparsity.stride != 0
        scores = scores.masked_fill(far & between, -torch.inf)
    if form.sinks is not None:
        scores = torch.cat((scores, form.sinks[:, None, None].expand(-1, len(q), 1)), -1)
    return torch.einsum("hqk,khd->qhd", scores.softmax(-1)[..., : len(keys)], values)


def check(out: torch.Tensor, metadata: AttentionMetadata, one: object, tolerance: float = 1e-2) -> None:
    """one(entry, tokens, slots) gives what some entries should be."""
    starts, lengths = metadata.q_start.tolist(), metadata.kv_len.tolist()
    for entry in {*range(min(CHECKED, len(lengths))), len(lengths) - 1}:
        tokens = slice(starts[entry], starts[entry + 1])
        reference = one(tokens, metadata.req_to_token[entry, : lengths[entry]].long())
        found = out[tokens].float()
        assert torch.isfinite(found).all()
        assert float((found - reference).norm() / reference.norm()) < tolerance


@pytest.mark.parametrize("heads", [(32, 8, 128), (16, 8, 256), (71, 1, 64)])
@pytest.mark.parametrize("name", FORMS)
def test_every_form_of_score_beside_each_other(generator, name, heads):
    query_heads, kv_heads, size = heads
    q_lens, kv_lens = [1, 1, 1, 1, 300, 1, 129], [5000, 1, 129, 33, 1300, 700, 129]
    metadata = shuffled_metadata(generator, q_lens, kv_lens, 4)
    kv = random(generator, sum(kv_lens) + 1, 2 * kv_heads, size)
    q = random(generator, sum(q_lens), query_heads, size)
    form, out = (
        spec_on(make_spec(query_heads, size**-0.5, **FORMS[name]), CUDA),
        torch.full_like(q, torch.nan),
    )
    layer = KvLayer(kv, kv_heads)
    TRITON.decode(AttentionCall(q, layer, metadata, form, out))
    TRITON.prefill(AttentionCall(q, layer, metadata, form, out))
    check(out, metadata, lambda tokens, slots: expected(q[tokens], *kv[slots].chunk(2, 1), form))


@pytest.mark.parametrize("name", ["plain", "window and sinks", "softcap"])
def test_dense_keys_and_values_of_whole_prompts(generator, name):
    q_lens = [3000, 1, 129, 64]
    metadata = shuffled_metadata(generator, q_lens, q_lens, 0)
    qkv = random(generator, sum(q_lens), 48, 128)
    q, k, v = qkv.split((32, 8, 8), 1)
    form, out = spec_on(make_spec(32, 128**-0.5, **FORMS[name]), CUDA), torch.full_like(q, torch.nan)
    kv = torch.full((sum(q_lens) + 1, 16, 128), torch.nan, dtype=q.dtype, device=CUDA)
    TRITON.prefill(AttentionCall(q, KvLayer(kv, 8), metadata, form, out, (k, v)))
    check(out, metadata, lambda tokens, slots: expected(q[tokens], k[tokens], v[tokens], form))


@pytest.mark.parametrize("heads", [16, 128])
def test_latent_attention_decodes_over_latents(generator, heads):
    kv_lens = [4000, 1, 129, *(50 * i + 7 for i in range(60))]
    metadata = shuffled_metadata(generator, [1] * len(kv_lens), kv_lens, len(kv_lens))
    kv = random(generator, sum(kv_lens) + 1, 1, LATENT + ROPE)
    q = random(generator, len(kv_lens), heads, LATENT + ROPE)
    out = torch.full((len(q), heads, LATENT), torch.nan, dtype=q.dtype, device=CUDA)
    mla_decode_attention(q, KvLayer(kv, 0), metadata, 0.05, out)
    check(
        out,
        metadata,
        lambda t, slots: expected(q[t], kv[slots], kv[slots][..., :LATENT], AttentionSpec(0.05)),
    )


def test_latent_attention_prefills_over_expanded_contexts_in_pieces(generator):
    q_lens, kv_lens, heads = [1, 512, 1, 300], [700, 2500, 1000, 300], 16
    metadata = shuffled_metadata(generator, q_lens, kv_lens, 1)
    kv = random(generator, sum(kv_lens) + 1, 1, LATENT + ROPE)
    q = random(generator, sum(q_lens), heads, NOPE + ROPE)
    up = random(generator, heads * (NOPE + VALUE), LATENT) / LATENT**0.5
    out = torch.full((len(q), heads, VALUE), torch.nan, dtype=q.dtype, device=CUDA)

    def expand(context: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        latent, key = context.split((LATENT, ROPE), -1)
        nope, values = (latent @ up.T).view(len(latent), heads, -1).split((NOPE, VALUE), -1)
        return torch.cat((nope, key[:, None].expand(-1, heads, -1)), -1), values

    pieces = metadata.prefill_pieces(2600)
    assert len(pieces) == 2
    for piece in pieces:
        mla_prefill_attention(q, *expand(mla_context(KvLayer(kv, 0), piece)), piece, 0.05, out)
    out[0] = expected(q[:1], *expand(kv[metadata.req_to_token[0, :700].long(), 0]), AttentionSpec(0.05))[0]
    check(out, metadata, lambda t, slots: expected(q[t], *expand(kv[slots, 0]), AttentionSpec(0.05)))
