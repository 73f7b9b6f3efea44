"""The residual addition and the RMSNorm that follows it."""

from __future__ import annotations

import torch

from lightllm.ops.torch import rms_norm as torch_impl


def fused_add_rms_norm(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float
) -> torch.Tensor:
    """Adds x to `residual` in place and returns the RMSNorm of the sum as a new tensor.

    x, residual: [T, size] of one dtype; weight: [size]. See `rms_norm` for the formula.
    """
    if x.is_cuda:
        from lightllm.ops.triton import rms_norm as triton_impl

        return triton_impl.fused_add_rms_norm(x, residual, weight, eps)
    residual.add_(x)
    return torch_impl.rms_norm(residual, weight, eps)
