"""Prefill attention: causal, chunks of any lengths, over a cached prefix and the chunk itself (FlashAttention-2, Dao 2023).

A program computes a tile of one chunk (`AttentionParts`): some tokens times the query heads that share a KV head, which
are the rows of its products, so that keys and values are read once for all of them. Keys are read through slots, or, where
no chunk has a cached prefix, from the dense tensors that the layer has just made. Key blocks that all rows see are
computed without masks, and only those at the diagonal and at the window's edge with them; all of them in one loop, since
between two loops the loads in flight run dry, and ptxas orders Hopper's products one by one (docs/kernels.md).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from lightllm.ops.attention_backends.protocol import AttentionCall
from lightllm.ops.attention_metadata import AttentionMetadata
from lightllm.ops.attention_spec import AttentionSpec
from lightllm.ops.kv_layer import KvLayer
from lightllm.ops.triton.attention_parts import prefill_parts
from lightllm.ops.triton.attention_scores import (
    LOG2_E,
    gpu_architecture,
    in_seen_block,
    is_float32,
    scale_stride,
    score_arguments,
    score_flags,
    score_tensors,
    scores_log2,
)
from lightllm.ops.triton.launch import cdiv, launch, launch_config, next_power_of_2, pdl_options

LARGEST_GROUP = 16
"""Query heads of a KV head that share a tile; of a larger group several programs compute a part each."""
_SLICES = ["start_ptr", "kv_len_ptr", "rows_ptr", "context_ptr"]
"""Tensors that begin at the first prefill entry: their alignment says nothing about the next round's."""


@triton.jit(do_not_specialize=["window", "n"], do_not_specialize_on_alignment=_SLICES)
def prefill_attention_kernel(
    q_ptr, k_ptr, v_ptr, scales_ptr, out_ptr,
    table_ptr, rows_ptr, start_ptr, kv_len_ptr, context_ptr, first_ptr, entry_of_ptr, slopes_ptr, sinks_ptr,
    offsets_ptr, scale, softcap, window, n,
    q_stride, q_head_stride, k_stride, k_head_stride, v_stride, v_head_stride, out_stride, out_head_stride,
    table_stride, scale_stride,
    GROUP: tl.constexpr, BLOCK_G: tl.constexpr,
    KEY_DIM: tl.constexpr, VALUE_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_V: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    DENSE: tl.constexpr, WINDOW: tl.constexpr, SOFTCAP: tl.constexpr, ALIBI: tl.constexpr, SINKS: tl.constexpr,
    SPARSE: tl.constexpr, LOCAL: tl.constexpr, STRIDE: tl.constexpr, CODED: tl.constexpr, EXACT: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """out[t, h] = softmax(score(q[t, h], K)) V for the tokens of n chunks. Grid (tiles, kv_heads * ceil(GROUP / BLOCK_G)).

    DENSE: keys and values of entry i are the rows context[i] + position of k and v; otherwise those of the slots that
    `table` lists; CODED: these are codes, see `decode_attention_kernel`. Tiles are taken from the last one of a head, the longest, to the first, so that long ones do not
    start when everything else is done; heads follow one another, so that their keys stay in the L2 cache.
    """
    # long because: what a program holds in registers cannot be handed around
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    tiles = tl.load(first_ptr + n)
    if tl.program_id(0) >= tiles:
        return
    tile = tiles - 1 - tl.program_id(0)
    entry = tl.load(entry_of_ptr + tile)
    block_q: tl.constexpr = BLOCK_M // BLOCK_G
    offset = (tile - tl.load(first_ptr + entry)) * block_q
    start = tl.load(start_ptr + entry)
    q_len = tl.load(start_ptr + entry + 1) - start
    kv_len = tl.load(kv_len_ptr + entry)
    first_position = kv_len - q_len + offset
    last_position = kv_len - q_len + tl.minimum(offset + block_q, q_len) - 1

    g_blocks: tl.constexpr = (GROUP + BLOCK_G - 1) // BLOCK_G
    kv_head = tl.program_id(1) // g_blocks
    rows = tl.arange(0, BLOCK_M)
    token = offset + rows // BLOCK_G
    group_head = (tl.program_id(1) % g_blocks) * BLOCK_G + rows % BLOCK_G
    head = kv_head * GROUP + group_head
    row_mask = (rows < block_q * BLOCK_G) & (token < q_len) & (group_head < GROUP)
    position = tl.minimum(kv_len - q_len + token, last_position)
    offs_d = tl.arange(0, BLOCK_D)
    offs_v = tl.arange(0, BLOCK_V)
    place = (start + token).to(tl.int64)
    q = tl.load(
        q_ptr + (place * q_stride + head * q_head_stride)[:, None] + offs_d[None, :],
        mask=row_mask[:, None] & (offs_d < KEY_DIM)[None, :],
        other=0.0,
    )
    slopes = tl.load(slopes_ptr + head, mask=row_mask, other=0.0) * LOG2_E if ALIBI else None
    offsets = tl.load(offsets_ptr + head, mask=row_mask, other=0)[:, None] if SPARSE else None
    k_ptr += kv_head * k_head_stride
    v_ptr += kv_head * v_head_stride
    if DENSE:
        k_ptr += tl.load(context_ptr + entry).to(tl.int64) * k_stride
        v_ptr += tl.load(context_ptr + entry).to(tl.int64) * v_stride
    else:
        table_ptr += tl.load(rows_ptr + entry) * table_stride

    # Keys [begin, seen_by_all) are at the window's edge, or in blocks that rows leave out; [seen_by_all, diagonal) in all
    # rows' sight; [diagonal, end) at the diagonal.
    end = last_position + 1
    diagonal = (first_position + 1) // BLOCK_N * BLOCK_N
    begin = 0
    seen_by_all = 0
    if WINDOW or SPARSE:
        begin = tl.maximum(first_position + 1 - window, 0) // BLOCK_N * BLOCK_N if WINDOW else 0
        first_seen = tl.maximum(last_position + 1 - window, 0)
        if SPARSE:
            first_seen = tl.maximum(last_position // SPARSE + 1 - LOCAL, 0) * SPARSE
        seen_by_all = tl.minimum(tl.cdiv(first_seen, BLOCK_N) * BLOCK_N, diagonal)
    tl.assume(begin < end)  # the compiler then leaves out the way past the loop
    top = tl.full((BLOCK_M,), float("-inf"), dtype=tl.float32)
    total = tl.zeros((BLOCK_M,), dtype=tl.float32)
    acc = tl.zeros((BLOCK_M, BLOCK_V), dtype=tl.float32)
    offs_n = tl.arange(0, BLOCK_N)
    precision: tl.constexpr = "ieee" if EXACT else "tf32"
    for start in range(begin, end, BLOCK_N):
        key = start + offs_n
        inside = key < end
        k_mask = inside[:, None] & (offs_d < KEY_DIM)[None, :]
        v_mask = inside[:, None] & (offs_v < VALUE_DIM)[None, :]
        if DENSE:
            k_places = k_ptr + tl.cast(start, tl.int64) * k_stride + (offs_n * k_stride)[:, None]
            v_places = v_ptr + tl.cast(start, tl.int64) * v_stride + (offs_n * v_stride)[:, None]
        else:
            slot = tl.load(table_ptr + key, mask=inside, other=0).to(tl.int64)
            k_places = k_ptr + (slot * k_stride)[:, None]
            v_places = v_ptr + (slot * v_stride)[:, None]
        # Keys are laid out as values are, and turned on their way to the product: one set of slot numbers serves both.
        k = tl.load(k_places + offs_d[None, :], mask=k_mask, other=0.0)
        if CODED:
            k = k.to(q.dtype)
        scores = tl.dot(q, k.T, input_precision=precision)
        if CODED:
            scale_places = scales_ptr + slot * scale_stride + kv_head
            scores *= tl.load(scale_places, mask=inside, other=0.0).to(tl.float32)[None, :]
        # Without a cap or a bias the scale is multiplied into the exponent: one multiply-add an element.
        factor = scale
        if SOFTCAP or ALIBI:
            distance = position[:, None] - key[None, :]
            scores = scores_log2(scores, distance, slopes, scale, softcap, SOFTCAP, ALIBI)
            factor = 1.0
        masked = start >= diagonal
        if WINDOW or SPARSE:
            masked = masked | (start < seen_by_all)
        if masked:
            seen = key[None, :] <= position[:, None]
            if WINDOW:
                seen = seen & (key[None, :] > position[:, None] - window)
            if SPARSE:
                seen = seen & in_seen_block(position[:, None], key[None, :], offsets, SPARSE, LOCAL, STRIDE)
            scores = tl.where(seen, scores, float("-inf"))
        new_top = tl.maximum(top, tl.max(scores, 1) * factor)
        base = new_top
        if WINDOW or SPARSE:
            # A row whose window or first block begins further on has seen nothing yet.
            base = tl.where(new_top == float("-inf"), 0.0, new_top)
        weights = tl.exp2(scores * factor - base[:, None])
        decay = tl.exp2(top - base)
        total = total * decay + tl.sum(weights, 1)
        v = tl.load(v_places + offs_v[None, :], mask=v_mask, other=0.0)
        if CODED:
            v = v.to(q.dtype)
            of_values = scale_places + tl.num_programs(1) // g_blocks
            weights *= tl.load(of_values, mask=inside, other=0.0).to(tl.float32)[None, :]
        acc = tl.dot(weights.to(v.dtype), v, acc * decay[:, None], input_precision=precision)
        top = new_top
    if SINKS:
        sinks = tl.load(sinks_ptr + head, mask=row_mask, other=0.0) * LOG2_E
        new_top = tl.maximum(top, sinks)
        decay = tl.exp2(top - new_top)
        total = total * decay + tl.exp2(sinks - new_top)
        acc = acc * decay[:, None]
    acc = acc / total[:, None]
    tl.store(
        out_ptr + (place * out_stride + head * out_head_stride)[:, None] + offs_v[None, :],
        acc.to(out_ptr.dtype.element_ty),
        mask=row_mask[:, None] & (offs_v < VALUE_DIM)[None, :],
    )


def prefill_attention(call: AttentionCall) -> None:
    q, kv, metadata, spec, out, dense = call
    if dense is not None and metadata.no_prefix:
        launch_prefill(q, *dense, metadata, spec, out, metadata.q_start[metadata.num_decode : -1])
    else:
        launch_prefill(q, kv.keys, kv.values, metadata, spec, out, None, kv)


def launch_prefill(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    metadata: AttentionMetadata,
    spec: AttentionSpec,
    out: torch.Tensor,
    context: torch.Tensor | None,
    coded: KvLayer | None = None,
) -> None:
    """As `AttentionBackend.prefill`. k, v: [slots + 1, kv_heads, dim]; or dense, with context: int32 [prefill entries], the
    row of k and v where each entry's context begins. coded: what k and v are views of, if it may hold codes."""
    heads, key_dim = q.shape[1:]
    kv_heads, value_dim = v.shape[1:]
    group = heads // kv_heads
    block_g = min(group, LARGEST_GROUP)
    block_d, block_v = next_power_of_2(key_dim), next_power_of_2(value_dim)
    assert q.stride(2) == k.stride(2) == v.stride(2) == out.stride(2) == 1
    arch = gpu_architecture(q.device)
    scales = None if coded is None else coded.scales
    special = is_special(group, block_g, spec.window != 0, **score_flags(spec))
    config = launch_config(
        "prefill_attention" if scales is None else "prefill_codes", q.device, arch=arch, head_dim=block_d, bytes=q.itemsize, special=special,
        slots=int(context is None),
    )  # fmt: skip
    parts = prefill_parts(metadata, config["BLOCK_M"] // block_g)
    first = metadata.num_decode
    launch(
        prefill_attention_kernel, (len(parts.entry_of), kv_heads * cdiv(group, block_g)),
        q, k, v, scales, out,
        metadata.req_to_token, metadata.rows[first:], metadata.q_start[first:], metadata.kv_len[first:], context,
        parts.first, parts.entry_of, *score_tensors(spec),
        *score_arguments(spec), spec.window, metadata.num_prefill,
        q.stride(0), q.stride(1), k.stride(0), k.stride(1), v.stride(0), v.stride(1), out.stride(0), out.stride(1),
        metadata.req_to_token.stride(0), 0 if coded is None else scale_stride(coded),
        GROUP=group, BLOCK_G=block_g, KEY_DIM=key_dim, VALUE_DIM=value_dim, BLOCK_D=block_d, BLOCK_V=block_v,
        DENSE=context is not None, WINDOW=spec.window != 0, CODED=scales is not None, EXACT=is_float32(q),
        **score_flags(spec), **config, **pdl_options(q.device),
    )  # fmt: skip


def is_special(group: int, block_g: int, window: bool, **flags: int) -> int:
    """1 if a kernel needs more registers than the plainest one: for scores, or to divide by an odd group."""
    return int(window or any(flags.values()) or block_g & (block_g - 1) != 0 or group % block_g != 0)
