"""RMSNorm in plain torch. `vector_norm` reads x once and makes no temporary of its size."""

from __future__ import annotations

import torch


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
    scale = norm.square_().mul_(1.0 / x.shape[-1]).add_(eps).rsqrt_()
    if x.dtype == torch.float32:
        return torch.mul(x, scale).mul_(weight)
    return torch.mul(x, scale).to(x.dtype).mul_(weight)
