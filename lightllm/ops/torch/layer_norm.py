"""LayerNorm in torch."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def layer_norm(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, eps: float) -> torch.Tensor:
    if weight.dim() == 1:
        return F.layer_norm(x, weight.shape, weight, bias, eps)
    normalized = F.layer_norm(x.float(), x.shape[-1:], eps=eps).mul_(weight)
    if bias is not None:
        normalized.add_(bias)
    return normalized.to(x.dtype)
