"""RMSNorm (Zhang and Sennrich 2019, arXiv 1910.07467): x / sqrt(mean(x²) + eps) * weight."""

from __future__ import annotations

import torch

from lightllm.ops.torch import rms_norm as torch_impl


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """Normalises the last dimension; the mean is taken in float32.

    x: [..., size], any strides; weight: [size], or broadcastable to x with one weight vector a head
    ([heads, size] for x [T, heads, size]). Returns a new tensor like x. What is multiplied by the weight has been
    rounded to x's dtype, unless the weight is float32.
    """
    if x.is_cuda:
        from lightllm.ops.triton import rms_norm as triton_impl

        return triton_impl.rms_norm(x, weight, eps)
    return torch_impl.rms_norm(x, weight, eps)
