"""Normalisation layers with their weights."""

from __future__ import annotations

from typing import Protocol

import torch

from lightllm.distributed.tp_group import TpGroup
from lightllm.ops.layer_norm import fused_add_layer_norm, layer_norm
from lightllm.ops.rms_norm import fused_add_rms_norm, rms_norm


class Norm(Protocol):
    """What normalises the residual stream."""

    nbytes: int

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """x: [..., size]. Returns a new tensor like x."""

    def add(self, x: torch.Tensor | None, residual: torch.Tensor) -> torch.Tensor:
        """Adds x (None: nothing) to `residual` in place and returns the norm of the sum; both [T, size]."""


class RMSNorm:
    def __init__(self, weight: torch.Tensor, eps: float) -> None:
        """weight: [size] in the activation dtype, or [heads, size] for a norm of each head."""
        self.weight, self.eps = weight, eps
        self.nbytes = weight.nbytes

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return rms_norm(x, self.weight, self.eps)

    def add(self, x: torch.Tensor | None, residual: torch.Tensor) -> torch.Tensor:
        if x is None:
            return rms_norm(residual, self.weight, self.eps)
        return fused_add_rms_norm(x, residual, self.weight, self.eps)


class LayerNorm:
    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None, eps: float) -> None:
        """weight, bias: [size] in the activation dtype, or [heads, size] for a norm of each head."""
        self.weight, self.bias, self.eps = weight, bias, eps
        self.nbytes = weight.nbytes + (0 if bias is None else bias.nbytes)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return layer_norm(x, self.weight, self.bias, self.eps)

    def add(self, x: torch.Tensor | None, residual: torch.Tensor) -> torch.Tensor:
        if x is None:
            return layer_norm(residual, self.weight, self.bias, self.eps)
        return fused_add_layer_norm(x, residual, self.weight, self.bias, self.eps)


class WholeQKNorm:
    """RMSNorm over all query heads at once, and over all key heads at once, whichever ranks hold them (OLMo 2)."""

    def __init__(
        self, q_weight: torch.Tensor, k_weight: torch.Tensor, eps: float, kv_copies: int, group: TpGroup
    ) -> None:
        """q_weight, k_weight: of this rank's heads; kv_copies: ranks that hold the same key head."""
        self.q_weight, self.k_weight, self.eps = q_weight, k_weight, eps
        self.kv_copies, self.group = kv_copies, group
        self.nbytes = q_weight.nbytes + k_weight.nbytes

    def __call__(self, qk: torch.Tensor) -> torch.Tensor:
        """qk: [T, heads + kv_heads, head_dim] of this rank, queries first. Returns a new tensor like it."""
        flat = qk.flatten(1)
        q, k = flat.split((len(self.q_weight), len(self.k_weight)), dim=1)
        if self.group.world_size == 1:
            normalised = (rms_norm(q, self.q_weight, self.eps), rms_norm(k, self.k_weight, self.eps))
            return torch.cat(normalised, dim=1).view(qk.shape)
        squares = torch.stack((q.float().square().sum(1), k.float().square().sum(1) / self.kv_copies))
        sums = self.group.all_reduce(squares)
        world = self.group.world_size
        q_scale = torch.rsqrt(sums[0] / (q.shape[1] * world) + self.eps)[:, None]
        k_scale = torch.rsqrt(sums[1] / (k.shape[1] * world // self.kv_copies) + self.eps)[:, None]
        normalised = (q * q_scale * self.q_weight, k * k_scale * self.k_weight)
        return torch.cat(normalised, dim=1).to(qk.dtype).view(qk.shape)
