"""Multi-head latent attention of prefill chunks: contexts side by side, then the dense form of `prefill_attention.py`."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from lightllm.ops.attention_metadata import AttentionMetadata
from lightllm.ops.attention_spec import AttentionSpec
from lightllm.ops.kv_layer import KvLayer
from lightllm.ops.triton.attention_parts import context_parts
from lightllm.ops.triton.launch import next_power_of_2
from lightllm.ops.triton.prefill_attention import launch_prefill

BLOCK_TOKENS = 32


@triton.jit(do_not_specialize=["n"], do_not_specialize_on_alignment=["rows_ptr"])
def mla_context_kernel(
    kv_ptr, out_ptr, table_ptr, rows_ptr, start_ptr, first_ptr, entry_of_ptr,
    n, kv_stride, out_stride, table_stride,
    WIDTH: tl.constexpr, BLOCK_W: tl.constexpr, BLOCK_TOKENS: tl.constexpr,
):  # fmt: skip
    """out[start[i] + position] = kv[slot of that position of entry i]. Grid (parts,)."""
    part = tl.program_id(0)
    entry = tl.load(entry_of_ptr + part)
    if entry >= n:
        return
    start = tl.load(start_ptr + entry)
    position = (part - tl.load(first_ptr + entry)) * BLOCK_TOKENS + tl.arange(0, BLOCK_TOKENS)
    inside = position < tl.load(start_ptr + entry + 1) - start
    table_ptr += tl.load(rows_ptr + entry) * table_stride
    slot = tl.load(table_ptr + position, mask=inside, other=0).to(tl.int64)
    columns = tl.arange(0, BLOCK_W)
    mask = inside[:, None] & (columns < WIDTH)[None, :]
    latents = tl.load(kv_ptr + (slot * kv_stride)[:, None] + columns[None, :], mask=mask)
    places = (start + position).to(tl.int64) * out_stride
    tl.store(out_ptr + places[:, None] + columns[None, :], latents, mask=mask)


def mla_context(kv: KvLayer, metadata: AttentionMetadata) -> torch.Tensor:
    data, width = kv.data, kv.data.shape[2]
    out = torch.empty((int(metadata.prefill_lens[1].sum()), width), dtype=data.dtype, device=data.device)
    parts = context_parts(metadata, BLOCK_TOKENS)
    mla_context_kernel[(len(parts.entry_of),)](
        data, out, metadata.req_to_token, metadata.rows[metadata.num_decode :], metadata.context_start, parts.first, parts.entry_of,
        metadata.num_prefill, data.stride(0), out.stride(0), metadata.req_to_token.stride(0),
        WIDTH=width, BLOCK_W=next_power_of_2(width), BLOCK_TOKENS=BLOCK_TOKENS, num_warps=8,
    )  # fmt: skip
    return out


def mla_prefill_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    metadata: AttentionMetadata,
    scale: float,
    out: torch.Tensor,
) -> None:
    launch_prefill(q, k, v, metadata, AttentionSpec(scale), out, metadata.context_start)
