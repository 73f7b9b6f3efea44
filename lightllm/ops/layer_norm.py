"""LayerNorm (Ba et al. 2016, arXiv 1607.06450), alone or after the residual addition."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def layer_norm(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, eps: float) -> torch.Tensor:
    """(x - mean) / sqrt(variance + eps) * weight + bias over the last dimension; mean and variance (the biased one) are
    taken in float32.

    x: [..., size], any strides; weight: [size], or [heads, size] for x [T, heads, size] with one weight vector a
    head; bias: like weight, or None. Returns a new tensor like x.
    """
    if x.is_cuda:
        from lightllm.ops.triton import layer_norm as triton_impl

        return triton_impl.layer_norm(x, weight, bias, eps)
    if weight.dim() == 1:
        return F.layer_norm(x, weight.shape, weight, bias, eps)
    normalized = F.layer_norm(x.float(), x.shape[-1:], eps=eps).mul_(weight)
    if bias is not None:
        normalized.add_(bias)
    return normalized.to(x.dtype)


def fused_add_layer_norm(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, eps: float
) -> torch.Tensor:
    """Adds x to `residual` in place and returns the LayerNorm of the sum as a new tensor.

    x, residual: [T, size] of one dtype; weight, bias: [size].
    """
    if x.is_cuda:
        from lightllm.ops.triton import layer_norm as triton_impl

        return triton_impl.fused_add_layer_norm(x, residual, weight, bias, eps)
    return layer_norm(residual.add_(x), weight, bias, eps)
