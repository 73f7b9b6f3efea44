"""RMSNorm (Zhang and Sennrich 2019, arXiv 1910.07467), alone or after the residual addition."""

from __future__ import annotations

import functools

import torch

from lightllm.ops.cpu import rms_norm as cpu_impl


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """x / sqrt(mean(x²) + eps) * weight over the last dimension; the mean is taken in float32.

    x: [..., size], any strides; weight: [size], or broadcastable to x with one weight vector a head
    ([heads, size] for x [T, heads, size]). Returns a new tensor like x. What is multiplied by the weight has been
    rounded to x's dtype, unless the weight is float32.
    """
    if x.is_cuda:
        from lightllm.ops.triton import rms_norm as triton_impl

        return triton_impl.rms_norm(x, weight, eps)
    result = cpu_impl.rms_norm(x, weight, eps)
    return _in_torch(x, weight, eps) if result is None else result


def fused_add_rms_norm(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float
) -> torch.Tensor:
    """Adds x to `residual` in place and returns the RMSNorm of the sum as a new tensor.

    x, residual: [T, size] of one dtype; weight: [size].
    """
    if x.is_cuda:
        from lightllm.ops.triton import rms_norm as triton_impl

        return triton_impl.fused_add_rms_norm(x, residual, weight, eps)
    result = cpu_impl.rms_norm(x, weight, eps, residual)
    return _in_torch(residual.add_(x), weight, eps) if result is None else result


def _in_torch(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    # `vector_norm` reads x once and makes no temporary of its size.
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
    scale = torch.addcmul(_constant(eps, x.device), norm, norm, value=1.0 / x.shape[-1]).rsqrt_()
    if x.dtype == torch.float32:
        return torch.mul(x, scale).mul_(weight)
    if weight.dtype == torch.float32:
        return torch.mul(x, scale).mul_(weight).to(x.dtype)
    return torch.mul(x, scale).to(x.dtype).mul_(weight)


@functools.cache
def _constant(value: float, device: torch.device) -> torch.Tensor:
    """A number as a tensor, made once: each Python number costs an operation a conversion."""
    return torch.tensor(value, dtype=torch.float32, device=device)
