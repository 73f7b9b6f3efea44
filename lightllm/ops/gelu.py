"""GELU (Hendrycks and Gimpel 2016, arXiv 1606.08415) of an MLP without a gate."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def gelu(x: torch.Tensor, approximate: str = "tanh") -> torch.Tensor:
    """x: [T, size]. Returns a new tensor like x.

    approximate: "tanh" for 0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x³))), "none" for x Φ(x).
    """
    return F.gelu(x, approximate=approximate)
