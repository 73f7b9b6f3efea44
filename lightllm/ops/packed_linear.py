"""What a linear layer holds: a weight in the form that its device computes with."""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F


class PackedLinear(Protocol):
    """A weight [out, in] and its bias in some form; calling it computes x Wᵀ + bias."""

    nbytes: int

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """x: [T, in] in `activation_dtype`. Returns [T, out] of the same dtype."""


class PlainLinear:
    """The weight as it is, on any device."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        self.weight, self.bias = weight, bias
        self.nbytes = weight.nbytes

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self.weight, self.bias)
