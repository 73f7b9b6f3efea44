"""LayerNorm (Ba et al. 2016, arXiv 1607.06450): (x - mean) / sqrt(variance + eps) * weight + bias."""

from __future__ import annotations

import torch

from lightllm.ops.torch import layer_norm as torch_impl


def layer_norm(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, eps: float) -> torch.Tensor:
    """Normalises the last dimension; mean and variance (the biased one) are taken in float32.

    x: [..., size], any strides; weight: [size], or [heads, size] for x [T, heads, size] with one weight vector a
    head; bias: like weight, or None. Returns a new tensor like x.
    """
    return torch_impl.layer_norm(x, weight, bias, eps)
