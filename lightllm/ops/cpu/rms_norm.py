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
    kernel = _kernels.find(x.dtype)
    if kernel is None or x.dim() not in (2, 3) or x.stride(-1) != 1 or weight.stride(-1) != 1:
        return None
    if weight.dtype != x.dtype and weight.dtype != torch.float32:
        return None
    tokens, size, itemsize = x.shape[0], x.shape[-1], x.itemsize
    heads, head_stride = (1, 0) if x.dim() == 2 else (x.shape[1], x.stride(1))
    address, stride = 0, 0
    if residual is not None:
        if residual.stride(-1) != 1 or residual.dtype != x.dtype:
            return None
        address, stride = residual.data_ptr(), residual.stride(0) * itemsize
    out = torch.empty(x.shape, dtype=x.dtype)
    _kernels.run(
        kernel, tokens * heads, size,
        x.data_ptr(), x.stride(0) * itemsize, head_stride * itemsize, heads, size, address, stride,
        weight.data_ptr(), weight.stride(0) * weight.itemsize if weight.dim() == 2 else 0, weight.dtype == torch.float32,
        out.data_ptr(), size * itemsize, float_bits(eps),
    )  # fmt: skip
    return out
