"""Rotary position embedding in three passes over the heads."""

from __future__ import annotations

import torch


def rotary_embedding(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    half = x.shape[-1] // 2
    sin = sin[..., :half]
    rotated = torch.mul(x, cos)
    rotated[..., :half].addcmul_(x[..., half:], sin, value=-1)
    rotated[..., half:].addcmul_(x[..., :half], sin)
    return rotated
