"""RMSNorm in plain torch. `vector_norm` reads x once and makes no temporary of its size."""

from __future__ import annotations

import functools

import torch


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
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
