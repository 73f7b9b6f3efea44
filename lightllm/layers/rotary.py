"""Cosines and sines of rotary position embeddings, looked up once per batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
        axes: Sequence[int] = (),
    ) -> None:
        """dim, theta, scaling, length: see `inverse_frequencies`; axes: see `RopeConfig`."""
        inverse, self._factor = inverse_frequencies(dim, theta, scaling, length)
        self._inverse = inverse.to(device)
        self._table = rotary_table(self._inverse, 0, 2048, dtype, self._factor)
        self._axes = torch.tensor([*axes, *axes], dtype=torch.int64, device=device)

    def lookup(self, positions: torch.Tensor, longest: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosines and sines [T, 1, dim] of positions, int64 [T] or, of a table with axes, [3, T], all below `longest`."""
        size = self._table.shape[0]
        if longest > size:
            more = rotary_table(self._inverse, size, max(longest, 2 * size), self._table.dtype, self._factor)
            self._table = torch.cat((self._table, more))
        found = self._table.index_select(0, positions.flatten())
        if positions.dim() == 2:
            by_axis = found.view(3, positions.shape[1], *found.shape[1:])
            found = by_axis.gather(0, self._axes.expand(1, *by_axis.shape[1:]))[0]
        cos, sin = found.chunk(2, dim=1)
        return cos, sin
