"""Head norm, rotation and KV write with a kernel of our own: see `kernels/rotary.py`."""

from __future__ import annotations

import torch

from lightllm.ops.cpu.calls import rotary as at
from lightllm.ops.cpu.rows import RowKernels, float_bits
from lightllm.ops.kv_layer import KvLayer

_kernels = RowKernels("rotary", at.LENGTH, 1 << 16)


def rotary_and_write_kv(
    qk: torch.Tensor,
    v: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    kv: KvLayer,
    slots: torch.Tensor,
    interleaved: bool,
    weight: torch.Tensor | None,
    eps: float,
    keep_keys: bool,
) -> torch.Tensor | None:
    """None, and nothing done, where there is no kernel for it."""
    dtype, kernel = qk.dtype, _kernels.find(qk.dtype)
    tokens, all_heads, head_dim = qk.shape
    if (
        kernel is None
        or head_dim > at.LARGEST_HEAD
        or not kv.holds(dtype)
        or not (v.dtype == cos.dtype == dtype)
    ):
        return None
    if (
        not (qk.stride(2) == v.stride(2) == cos.stride(2) == sin.stride(2) == 1)
        or cos.stride() != sin.stride()
    ):
        return None
    if kv.data.stride()[1:] != (head_dim, 1) or not slots.is_contiguous() or slots.dtype != torch.int64:
        return None
    norm, norm_stride, norm_is_float32 = 0, 0, False
    if weight is not None:
        if weight.stride(-1) != 1 or weight.dtype not in (dtype, torch.float32):
            return None
        norm, norm_is_float32 = weight.data_ptr(), weight.dtype == torch.float32
        norm_stride = weight.stride(0) * weight.itemsize if weight.dim() == 2 else 0
    kv_heads, itemsize = v.shape[1], qk.itemsize
    heads, head_bytes = all_heads - kv_heads, head_dim * itemsize
    kept = all_heads if keep_keys else heads
    out = torch.empty((tokens, kept, head_dim), dtype=dtype)
    _kernels.run(
        kernel, tokens, (all_heads + kv_heads) * head_dim,
        qk.data_ptr(), qk.stride(0) * itemsize, qk.stride(1) * itemsize,
        v.data_ptr(), v.stride(0) * itemsize, v.stride(1) * itemsize,
        heads, kv_heads, head_dim, cos.shape[2], interleaved,
        cos.data_ptr(), sin.data_ptr(), cos.stride(0) * itemsize,
        norm, norm_stride, norm_is_float32, float_bits(eps),
        kv.data.data_ptr(), kv.data.stride(0) * itemsize, slots.data_ptr(),
        out.data_ptr(), kept * head_bytes, kept, head_bytes,
    )  # fmt: skip
    return out
