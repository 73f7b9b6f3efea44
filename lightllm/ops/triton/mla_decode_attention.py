"""Multi-head latent attention of decode entries, absorbed: all heads read one latent vector a token, as keys and as values.

As `decode_attention`, but what is read once from memory serves both products: the values are the first LATENT columns of
the keys.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from lightllm.ops.attention_metadata import AttentionMetadata
from lightllm.ops.kv_layer import KvLayer
from lightllm.ops.triton.attention_parts import decode_work
from lightllm.ops.triton.attention_scores import LOG2_E, gpu_architecture, is_float32, leave_part, merge_parts
from lightllm.ops.triton.launch import cdiv, launch_config, next_power_of_2


@triton.jit(do_not_specialize=["n"], do_not_specialize_on_alignment=["rows_ptr", "kv_len_ptr"])
def mla_decode_attention_kernel(
    q_ptr, kv_ptr, out_ptr, partial_ptr, lse_ptr, arrived_ptr,
    table_ptr, rows_ptr, kv_len_ptr, first_ptr, entry_of_ptr,
    scale, n,
    q_stride, q_head_stride, kv_stride, out_stride, out_head_stride, table_stride,
    HEADS: tl.constexpr, LATENT: tl.constexpr, ROPE: tl.constexpr,
    BLOCK_H: tl.constexpr, BLOCK_L: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_N: tl.constexpr,
    EXACT: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """out[i, h] = softmax2(scale * q[i, h] Cᵀ) C[:, :LATENT], softmax2 to the base 2. Grid (ceil(HEADS / BLOCK_H), parts)."""
    # long because: what a program holds in registers cannot be handed around
    head_block = tl.program_id(0)
    part = tl.program_id(1)
    entry = tl.load(entry_of_ptr + part)
    if entry >= n:
        return
    first = tl.load(first_ptr + entry)
    parts = tl.load(first_ptr + entry + 1) - first
    kv_len = tl.load(kv_len_ptr + entry)
    size = tl.cdiv(tl.cdiv(kv_len, parts), BLOCK_N) * BLOCK_N
    begin = (part - first) * size
    end = tl.minimum(begin + size, kv_len)
    table_ptr += tl.load(rows_ptr + entry) * table_stride

    heads = head_block * BLOCK_H + tl.arange(0, BLOCK_H)
    offs_l = tl.arange(0, BLOCK_L)
    offs_r = tl.arange(0, BLOCK_R)
    offs_n = tl.arange(0, BLOCK_N)
    head_mask = heads < HEADS
    l_mask = offs_l < LATENT
    r_mask = offs_r < ROPE
    row_mask = head_mask[:, None] & l_mask[None, :]
    if PDL:
        # What was read so far was written several kernels ago: see `decode_attention`.
        gdc_wait()
        gdc_launch_dependents()
    q_heads = q_ptr + entry.to(tl.int64) * q_stride + heads[:, None] * q_head_stride
    q_latent = tl.load(q_heads + offs_l[None, :], mask=row_mask, other=0.0)
    q_rope = tl.load(q_heads + LATENT + offs_r[None, :], mask=head_mask[:, None] & r_mask[None, :], other=0.0)
    precision: tl.constexpr = "ieee" if EXACT else "tf32"

    top = tl.full((BLOCK_H,), float("-inf"), dtype=tl.float32)
    total = tl.zeros((BLOCK_H,), dtype=tl.float32)
    acc = tl.zeros((BLOCK_H, BLOCK_L), dtype=tl.float32)
    for start in range(begin, end, BLOCK_N):
        position = start + offs_n
        inside = position < end
        slot = tl.load(table_ptr + position, mask=inside, other=0).to(tl.int64)
        token_ptr = kv_ptr + (slot * kv_stride)[:, None]
        latent = tl.load(token_ptr + offs_l[None, :], mask=inside[:, None] & l_mask[None, :], other=0.0)
        rope = tl.load(
            token_ptr + LATENT + offs_r[None, :], mask=inside[:, None] & r_mask[None, :], other=0.0
        )
        products = tl.dot(q_latent, tl.trans(latent), input_precision=precision)
        products = tl.dot(q_rope, tl.trans(rope), products, input_precision=precision)
        scores = tl.where(inside[None, :], products * scale, float("-inf"))
        new_top = tl.maximum(top, tl.max(scores, 1))
        weights = tl.exp2(scores - new_top[:, None])
        decay = tl.exp2(top - new_top)
        total = total * decay + tl.sum(weights, 1)
        acc = tl.dot(weights.to(latent.dtype), latent, acc * decay[:, None], input_precision=precision)
        top = new_top

    if parts > 1:
        lse_heads = lse_ptr + heads
        partial_heads = partial_ptr + heads[:, None] * LATENT + offs_l[None, :]
        arrived = arrived_ptr + head_block * n + entry
        earlier = leave_part(
            acc, total, top, partial_heads, lse_heads, arrived, part, head_mask, row_mask, HEADS, LATENT
        )
        if earlier < parts - 1:
            return
        top, total, acc = merge_parts(
            partial_heads, lse_heads, arrived, first, parts, head_mask, row_mask, HEADS, LATENT, BLOCK_H, BLOCK_L
        )  # fmt: skip
    out_heads = out_ptr + entry.to(tl.int64) * out_stride + heads[:, None] * out_head_stride
    tl.store(out_heads + offs_l[None, :], (acc / total[:, None]).to(out_ptr.dtype.element_ty), mask=row_mask)


def mla_decode_attention(
    q: torch.Tensor, kv: KvLayer, metadata: AttentionMetadata, scale: float, out: torch.Tensor
) -> None:
    metadata, data = metadata.decode_by_token(), kv.data
    heads, latent = out.shape[1:]
    rope = q.shape[2] - latent
    assert q.stride(2) == data.stride(2) == out.stride(2) == 1 and data.shape[2] == q.shape[2]
    config = launch_config(
        "mla_decode_attention", q.device, arch=gpu_architecture(q.device), heads=heads, bytes=q.itemsize
    )
    head_blocks = cdiv(heads, config["BLOCK_H"])
    parts, partial, pdl = decode_work(metadata, 0, head_blocks, config["BLOCK_N"], heads, latent)
    mla_decode_attention_kernel[(head_blocks, len(parts.entry_of))](
        q, data, out, partial.out, partial.lse, parts.arrived,
        metadata.req_to_token, metadata.rows, metadata.kv_len, parts.first, parts.entry_of,
        scale * LOG2_E.value, metadata.num_decode,
        q.stride(0), q.stride(1), data.stride(0), out.stride(0), out.stride(1), metadata.req_to_token.stride(0),
        HEADS=heads, LATENT=latent, ROPE=rope,
        BLOCK_L=next_power_of_2(latent), BLOCK_R=max(next_power_of_2(rope), 16),
        EXACT=is_float32(q), **config, **pdl,
    )  # fmt: skip
