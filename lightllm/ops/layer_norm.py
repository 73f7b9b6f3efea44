"""LayerNorm (Ba et al. 2016, arXiv 1607.06450): (x - mean) / sqrt(variance + eps) * weight + bias."""

from __future__ import annotations

import torch

from lightllm.ops.torch import layer_norm as torch_impl


def layer_norm(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, eps: float) -> torch.Tensor:
    """Normalises the last dimension; mean and variance (the biased one) are taken in float32.

    x: [..., size], any strides; weight: [size], or [heads, size] for x [T, heads, size] with one weight vector a
    head; bias: like weight, or None. Returns a new tensor like x.
    """
    if x.is_cuda:
        from lightllm.ops.triton import layer_norm as triton_impl

        return triton_impl.layer_norm(x, weight, bias, eps)
    return torch_impl.layer_norm(x, weight, bias, eps)


def fused_add_layer_norm(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, eps: float
) -> torch.Tensor:
    """Adds x to `residual` in place and returns the LayerNorm of the sum as a new tensor.

    x, residual: [T, size] of one dtype; weight, bias: [size].
    """
    if x.is_cuda:
        from lightllm.ops.triton import layer_norm as triton_impl

        return triton_impl.fused_add_layer_norm(x, residual, weight, bias, eps)
    residual.add_(x)
    return torch_impl.layer_norm(residual, weight, bias, eps)
