"""Cosines and sines of rotary position embeddings, looked up once per batch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from lightllm.ops.rotary import inverse_frequencies, rotary_table


class RotaryTable:
    """A table over positions that grows as longer contexts come, so that a model made for 1M tokens costs nothing."""

    def __init__(
        self,
        dim: int,
        theta: float,
        scaling: Mapping[str, Any],
        dtype: torch.dtype,
        device: torch.device,
        length: int | None = None,
    ) -> None:
        """dim, theta, scaling, length: see `inverse_frequencies`."""
        inverse, self._factor = inverse_frequencies(dim, theta, scaling, length)
        self._inverse = inverse.to(device)
        self._table = rotary_table(self._inverse, 0, 2048, dtype, self._factor)

    def lookup(self, positions: torch.Tensor, longest: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosines and sines [T, 1, dim] of positions int64 [T], all below `longest`."""
        size = self._table.shape[0]
        if longest > size:
            more = rotary_table(self._inverse, size, max(longest, 2 * size), self._table.dtype, self._factor)
            self._table = torch.cat((self._table, more))
        cos, sin = self._table.index_select(0, positions).chunk(2, dim=1)
        return cos, sin
