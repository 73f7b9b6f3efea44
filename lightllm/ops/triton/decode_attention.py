"""Decode attention by slots: split-KV flash decoding, one kernel for MHA, GQA and MQA.

A program reads one KV head of one part of one context (`AttentionParts`) once, for all query heads that share it: they
are the rows of a tensor-core product, padded to 16. The last part of a context to finish puts all of them together
(Dao et al. 2023, "Flash-Decoding"; its second kernel is fused by a counter, as in split-K products).
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from lightllm.ops.attention_backends.protocol import AttentionCall
from lightllm.ops.triton.attention_parts import RESIDENT, decode_work
from lightllm.ops.triton.attention_scores import (
    LOG2_E,
    gpu_architecture,
    in_seen_block,
    is_float32,
    leave_part,
    merge_parts,
    scale_stride,
    score_arguments,
    score_flags,
    score_tensors,
    scores_log2,
)
from lightllm.ops.triton.launch import launch, launch_config, next_power_of_2


@triton.jit(do_not_specialize=["window", "n"], do_not_specialize_on_alignment=["rows_ptr", "kv_len_ptr"])
def decode_attention_kernel(
    q_ptr, kv_ptr, scales_ptr, out_ptr, partial_ptr, lse_ptr, arrived_ptr,
    table_ptr, rows_ptr, kv_len_ptr, first_ptr, entry_of_ptr, slopes_ptr, sinks_ptr, offsets_ptr,
    scale, softcap, window, n,
    q_stride, q_head_stride, kv_stride, scale_stride, out_stride, out_head_stride, table_stride,
    KV_HEADS: tl.constexpr, GROUP: tl.constexpr, BLOCK_H: tl.constexpr,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr,
    SOFTCAP: tl.constexpr, ALIBI: tl.constexpr, SINKS: tl.constexpr, SPARSE: tl.constexpr, LOCAL: tl.constexpr,
    STRIDE: tl.constexpr, CODED: tl.constexpr, EXACT: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """out[i, h] = softmax(score(q[i, h], K)) V for n decode entries. Grid (KV_HEADS, parts).

    CODED: K and V are codes, which are multiplied as they are; the keys' scales are applied to the products, the values' to the
    weights. KV heads are the fastest dimension of the grid: programs that run side by side read neighbouring memory.
    """
    # long because: what a program holds in registers cannot be handed around
    kv_head = tl.program_id(0)
    part = tl.program_id(1)
    entry = tl.load(entry_of_ptr + part)
    if entry >= n:
        return
    first = tl.load(first_ptr + entry)
    parts = tl.load(first_ptr + entry + 1) - first
    kv_len = tl.load(kv_len_ptr + entry)
    seen = tl.where((window > 0) & (kv_len > window), window, kv_len)
    size = tl.cdiv(tl.cdiv(seen, parts), BLOCK_N) * BLOCK_N
    begin = kv_len - seen + (part - first) * size
    end = tl.minimum(begin + size, kv_len)
    table_ptr += tl.load(rows_ptr + entry) * table_stride

    offs_h = tl.arange(0, BLOCK_H)
    offs_d = tl.arange(0, BLOCK_D)
    offs_n = tl.arange(0, BLOCK_N)
    heads = kv_head * GROUP + offs_h
    head_mask = offs_h < GROUP
    d_mask = offs_d < HEAD_DIM
    row_mask = head_mask[:, None] & d_mask[None, :]
    q_ptr += entry.to(tl.int64) * q_stride
    if PDL:
        # What was read so far was written several kernels ago: see `decode_attention`.
        gdc_wait()
        gdc_launch_dependents()
    q = tl.load(q_ptr + heads[:, None] * q_head_stride + offs_d[None, :], mask=row_mask, other=0.0)
    slopes = tl.load(slopes_ptr + heads, mask=head_mask, other=0.0) * LOG2_E if ALIBI else None
    offsets = tl.load(offsets_ptr + heads, mask=head_mask, other=0)[:, None] if SPARSE else None
    precision: tl.constexpr = "ieee" if EXACT else "tf32"

    top = tl.full((BLOCK_H,), float("-inf"), dtype=tl.float32)
    total = tl.zeros((BLOCK_H,), dtype=tl.float32)
    acc = tl.zeros((BLOCK_H, BLOCK_D), dtype=tl.float32)
    for start in range(begin, end, BLOCK_N):
        position = start + offs_n
        inside = position < end
        slot = tl.load(table_ptr + position, mask=inside, other=0).to(tl.int64)
        # Keys are read as values are, and turned on their way to the product: one set of addresses serves both.
        places = kv_ptr + (slot * kv_stride + kv_head * HEAD_DIM)[:, None] + offs_d[None, :]
        tile_mask = inside[:, None] & d_mask[None, :]
        k = tl.load(places, mask=tile_mask, other=0.0)
        if CODED:
            k = k.to(q.dtype)
        products = tl.dot(q, k.T, input_precision=precision)
        if CODED:
            scale_places = scales_ptr + slot * scale_stride + kv_head
            products *= tl.load(scale_places, mask=inside, other=0.0).to(tl.float32)[None, :]
        scores = scores_log2(
            products, (kv_len - 1 - position)[None, :], slopes, scale, softcap, SOFTCAP, ALIBI
        )
        seen_keys = inside[None, :]
        if SPARSE:
            last = kv_len - 1
            seen_keys = seen_keys & in_seen_block(last, position[None, :], offsets, SPARSE, LOCAL, STRIDE)
        scores = tl.where(seen_keys, scores, float("-inf"))
        new_top = tl.maximum(top, tl.max(scores, 1))
        base = new_top
        if SPARSE:
            # A head may have seen nothing yet.
            base = tl.where(new_top == float("-inf"), 0.0, new_top)
        weights = tl.exp2(scores - base[:, None])
        decay = tl.exp2(top - base)
        total = total * decay + tl.sum(weights, 1)
        v = tl.load(places + KV_HEADS * HEAD_DIM, mask=tile_mask, other=0.0)
        if CODED:
            v = v.to(q.dtype)
            weights *= tl.load(scale_places + KV_HEADS, mask=inside, other=0.0).to(tl.float32)[None, :]
        acc = tl.dot(weights.to(v.dtype), v, acc * decay[:, None], input_precision=precision)
        top = new_top

    if parts > 1:
        # A part's own result, then the last one of the context reads them all.
        all_heads: tl.constexpr = KV_HEADS * GROUP
        lse_heads = lse_ptr + heads
        partial_heads = partial_ptr + heads[:, None] * HEAD_DIM + offs_d[None, :]
        arrived = arrived_ptr + kv_head * n + entry
        divisor = total
        if SPARSE:
            # Of a part that a head sees nothing of, the weight is 2^-inf.
            divisor = tl.where(total == 0.0, 1.0, total)
        earlier = leave_part(
            acc, divisor, top, partial_heads, lse_heads, arrived, part, head_mask, row_mask, all_heads, HEAD_DIM
        )  # fmt: skip
        if earlier < parts - 1:
            return
        top, total, acc = merge_parts(
            partial_heads, lse_heads, arrived, first, parts, head_mask, row_mask, all_heads, HEAD_DIM, BLOCK_H, BLOCK_D
        )  # fmt: skip
    if SINKS:
        sinks = tl.load(sinks_ptr + heads, mask=head_mask, other=0.0) * LOG2_E
        new_top = tl.maximum(top, sinks)
        decay = tl.exp2(top - new_top)
        total = total * decay + tl.exp2(sinks - new_top)
        acc = acc * decay[:, None]
    acc = acc / total[:, None]
    out_ptr += entry.to(tl.int64) * out_stride
    tl.store(
        out_ptr + heads[:, None] * out_head_stride + offs_d[None, :],
        acc.to(out_ptr.dtype.element_ty),
        mask=row_mask,
    )


def decode_attention(call: AttentionCall) -> None:
    q, kv, metadata, spec, out, _ = call
    metadata = metadata.decode_by_token()
    heads, head_dim = q.shape[1:]
    kv_heads, data = kv.kv_heads, kv.data
    group = heads // kv_heads
    block_h, block_d = max(next_power_of_2(group), 16), next_power_of_2(head_dim)
    assert data.stride(2) == q.stride(2) == out.stride(2) == 1 and data.stride(1) == head_dim
    name = "decode_attention" if kv.scales is None else "decode_codes"
    config = launch_config(name, q.device, block_h=block_h, head_dim=block_d, bytes=q.itemsize)
    resident = resident_programs(gpu_architecture(q.device), config["num_warps"], q.itemsize)
    parts, partial, pdl = decode_work(
        metadata, spec.window, kv_heads, config["BLOCK_N"], heads, head_dim, resident
    )
    launch(
        decode_attention_kernel, (kv_heads, len(parts.entry_of)),
        q, data, kv.scales, out, partial.out, partial.lse, parts.arrived,
        metadata.req_to_token, metadata.rows, metadata.kv_len, parts.first, parts.entry_of, *score_tensors(spec),
        *score_arguments(spec), spec.window, metadata.num_decode,
        q.stride(0), q.stride(1), data.stride(0), scale_stride(kv), out.stride(0), out.stride(1), metadata.req_to_token.stride(0),
        KV_HEADS=kv_heads, GROUP=group, BLOCK_H=block_h, HEAD_DIM=head_dim, BLOCK_D=block_d,
        CODED=kv.scales is not None, EXACT=is_float32(q), **score_flags(spec), **config, **pdl,
    )  # fmt: skip


def resident_programs(architecture: int, num_warps: int, itemsize: int) -> int:
    """Programs that a multiprocessor holds. From Hopper on shared memory has room for three (72 KB of 227) and so have the
    registers, of four warps with at most 168; eight warps, or another GPU's memory, leave room for two."""
    return 3 if architecture >= 90 and num_warps == 4 and itemsize == 2 else RESIDENT
