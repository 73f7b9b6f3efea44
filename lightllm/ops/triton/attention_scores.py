"""What the attention kernels share: from products q·k to scores in base 2, and from parts of a context to the whole.

Softmax is computed with exp2: scores are multiplied by log2(e) together with the scale (Dao et al. 2022, arXiv 2205.14135).
"""

from __future__ import annotations

import functools
import math

import torch
import triton
import triton.language as tl

from lightllm.ops.attention_spec import AttentionSpec
from lightllm.ops.kv_layer import KvLayer

LOG2_E: tl.constexpr = tl.constexpr(math.log2(math.e))


@triton.jit
def scores_log2(
    products, distance, slopes, scale, softcap, SOFTCAP: tl.constexpr, ALIBI: tl.constexpr
):  # fmt: skip
    """log2(e) * (cap(products * scale') - slopes * distance); see `AttentionSpec`.

    products: float32 [M, N]; distance: int32 [M, N] or [1, N]; slopes: float32 [M], times log2(e). SOFTCAP: scale is
    2 * log2(e) * scale' / softcap and softcap comes times log2(e), since tanh(x) = 1 - 2 / (1 + e^(2x)); otherwise scale
    is log2(e) * scale'.
    """
    scores = products * scale
    if SOFTCAP:
        scores = softcap * (1.0 - 2.0 / (1.0 + tl.exp2(scores)))
    if ALIBI:
        scores -= slopes[:, None] * distance.to(tl.float32)
    return scores


@triton.jit
def in_seen_block(position, key, offsets, SPARSE: tl.constexpr, LOCAL: tl.constexpr, STRIDE: tl.constexpr):
    """May a query look at the block of SPARSE tokens that a key is in? See `BlockSparsity`; arguments broadcast."""
    key_block = key // SPARSE
    near = position // SPARSE - key_block < LOCAL
    return near | ((key_block + 1 + offsets) % STRIDE == 0)


@triton.jit
def leave_part(
    acc, total, top, partial_heads, lse_heads, arrived, part, head_mask, row_mask,
    all_heads: tl.constexpr, DIM: tl.constexpr,
):  # fmt: skip
    """Stores the own result of one part of a context, its exponent, and counts it: returns how many parts had arrived.

    partial_heads: pointers [BLOCK_H, BLOCK_D] and lse_heads: pointers [BLOCK_H] to the results of part 0; arrived: the
    context's counter. The last part to arrive reads them all with `merge_parts`.
    """
    place = part.to(tl.int64) * all_heads
    tl.store(partial_heads + place * DIM, acc / total[:, None], mask=row_mask)
    tl.store(lse_heads + place, top + tl.log2(total), mask=head_mask)
    tl.debug_barrier()  # all threads have stored before one of them counts
    return tl.atomic_add(arrived, 1, sem="acq_rel")


@triton.jit
def merge_parts(
    partial_heads, lse_heads, arrived, first, parts, head_mask, row_mask, all_heads: tl.constexpr,
    DIM: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Softmax over the own results of a context's parts: the largest exponent, the denominator and the numerator.

    Arguments as of `leave_part`, whose counter is set back for the next layer. Some parts at a time, so that their loads
    are in flight together. What other programs wrote is read past the L1 cache, which may hold older lines. -1e30 stands
    for nothing: infinities would give NaN in rows beyond the group.
    """
    tl.store(arrived, 0)
    unroll: tl.constexpr = 4 if BLOCK_H * BLOCK_D <= 2048 else 2 if BLOCK_H * BLOCK_D <= 4096 else 1
    top = tl.full((BLOCK_H,), -1e30, dtype=tl.float32)
    total = tl.zeros((BLOCK_H,), dtype=tl.float32)
    acc = tl.zeros((BLOCK_H, BLOCK_D), dtype=tl.float32)
    for start in range(0, parts, unroll):
        for i in tl.static_range(unroll):
            mask = head_mask & (start + i < parts)
            place = (first + start + i).to(tl.int64) * all_heads
            lse = tl.load(lse_heads + place, mask=mask, other=-1e30, cache_modifier=".cg")
            mask = row_mask & (start + i < parts)
            partial = tl.load(partial_heads + place * DIM, mask=mask, other=0.0, cache_modifier=".cg")
            new_top = tl.maximum(top, lse)
            decay, weight = tl.exp2(top - new_top), tl.exp2(lse - new_top)
            total = total * decay + weight
            acc = acc * decay[:, None] + weight[:, None] * partial
            top = new_top
    return top, total, acc


def score_arguments(spec: AttentionSpec) -> tuple[float, float]:
    """`scale` and `softcap` of `scores_log2`."""
    if spec.softcap:
        return 2 * LOG2_E.value * spec.scale / spec.softcap, spec.softcap * LOG2_E.value
    return spec.scale * LOG2_E.value, 0.0


def score_tensors(spec: AttentionSpec) -> tuple[torch.Tensor | None, ...]:
    """`slopes_ptr`, `sinks_ptr` and `offsets_ptr` of a kernel that takes a spec."""
    return spec.alibi_slopes, spec.sinks, spec.sparsity.offsets if spec.sparsity else None


def score_flags(spec: AttentionSpec) -> dict[str, int]:
    """Its constexprs; SPARSE: the size of the blocks that are left out, 0 if none are."""
    sparse = spec.sparsity
    return {
        "SOFTCAP": spec.softcap != 0,
        "ALIBI": spec.alibi_slopes is not None,
        "SINKS": spec.sinks is not None,
        "SPARSE": sparse.block_size if sparse else 0,
        "LOCAL": sparse.local_blocks if sparse else 0,
        "STRIDE": sparse.stride if sparse else 0,
    }


def scale_stride(kv: KvLayer) -> int:
    """Numbers from slot to slot; kernels read one scale for each head."""
    if kv.scales is None:
        return 0
    assert kv.scales.shape[2] == 1 and kv.scales.stride(1) == 1
    return kv.scales.stride(0)


def is_float32(x: torch.Tensor) -> bool:
    """Products of float32 are then computed exactly and not in TF32."""
    return x.dtype == torch.float32


@functools.cache
def gpu_architecture(device: torch.device) -> int:
    """Compute capability as in sm_90; 90 where kernels are interpreted."""
    if device.type != "cuda":
        return 90
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor
