"""RMSNorm with its weight."""

from __future__ import annotations

import torch

from lightllm.ops.fused_add_rms_norm import fused_add_rms_norm
from lightllm.ops.rms_norm import rms_norm


class RMSNorm:
    def __init__(self, weight: torch.Tensor, eps: float) -> None:
        """weight: [size] in the activation dtype, or [heads, size] for a norm of each head."""
        self.weight, self.eps = weight, eps
        self.nbytes = weight.nbytes

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """x: [..., size]. Returns a new tensor like x."""
        return rms_norm(x, self.weight, self.eps)

    def add(self, x: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        """Adds x to `residual` in place and returns the norm of the sum; both [T, size]."""
        return fused_add_rms_norm(x, residual, self.weight, self.eps)
