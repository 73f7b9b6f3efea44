"""RMSNorm with a kernel of our own: see `kernels/rms_norm.py`."""

from __future__ import annotations

import torch

from lightllm.ops.cpu.calls import rms_norm as at
from lightllm.ops.cpu.rows import RowKernels, float_bits

_kernels = RowKernels("rms_norm", at.LENGTH, 1 << 16)


def rms_norm(
    x: torch.Tensor, weight: torch.Tensor, eps: float, residual: torch.Tensor | None = None
) -> torch.Tensor | None:
    """`rms_norm`, or with a residual [T, size] `fused_add_rms_norm`. None, and nothing done, where there is no kernel for it."""
    kernel, dtype, dimensions = _kernels.find(x.dtype), x.dtype, x.dim()
    if kernel is None or weight.dtype not in (dtype, torch.float32) or weight.stride(-1) != 1:
        return None
    if dimensions == 2:
        (tokens, size), (stride, last) = x.shape, x.stride()
        out, heads, head_stride = x.new_empty(tokens, size), 1, 0
    elif dimensions == 3:
        (tokens, heads, size), (stride, head_stride, last) = x.shape, x.stride()
        out = x.new_empty(tokens, heads, size)
    else:
        return None
    residual_address, residual_stride = 0, 0
    if residual is not None:
        residual_stride, residual_last = residual.stride()
        if residual_last != 1 or residual.dtype != dtype:
            return None
        residual_address = residual.data_ptr()
    if last != 1:
        return None
    itemsize = x.itemsize
    _kernels.run(
        kernel, tokens * heads, size,
        x.data_ptr(), stride * itemsize, head_stride * itemsize, heads, size,
        residual_address, residual_stride * itemsize,
        weight.data_ptr(), weight.stride(0) * weight.itemsize if weight.dim() == 2 else 0, weight.dtype == torch.float32,
        out.data_ptr(), size * itemsize, float_bits(eps),
    )  # fmt: skip
    return out
