"""Experts on a CPU: tokens are sorted by expert, and each expert that has any computes all of its own at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch

from lightllm.ops.packed_linear import PackedLinear
from lightllm.ops.weight_rows import WeightRows, as_rows


class Expert(NamedTuple):
    """One expert's weights, or one rank's share of them."""

    gate_up: torch.Tensor | WeightRows
    """[2 * width, hidden], the gate's rows first."""
    down: torch.Tensor | WeightRows
    """[hidden, width]"""
    gate_up_bias: torch.Tensor | None = None
    """[2 * width]"""
    down_bias: torch.Tensor | None = None
    """[hidden]"""


class PackedExperts:
    """Each expert as two packed linears, of any format."""

    def __init__(self, experts: Iterable[tuple[PackedLinear, PackedLinear]]) -> None:
        """experts: gate and up in one, and down, of each expert; made as they are asked for, one at a time."""
        self.gate_up: list[PackedLinear] = []
        self.down: list[PackedLinear] = []
        for gate_up, down in experts:
            self.gate_up.append(gate_up)
            self.down.append(down)
        self.nbytes = sum(linear.nbytes for linear in (*self.gate_up, *self.down))


class StackedExperts:
    """All experts in one tensor each: gate_up [count, 2 * width, hidden], down [count, hidden, width], and their biases
    [count, 2 * width] and [count, hidden], or None."""

    def __init__(self, count: int, expert: Callable[[int], Expert]) -> None:
        """expert: reads one; each is copied to its place before the next is read."""
        places: list[torch.Tensor | None] = []
        for number in range(count):
            weights = [None if weight is None else as_rows(weight) for weight in expert(number)]
            if not places:
                places = [None if rows is None else _places(count, rows) for rows in weights]
            for place, rows in zip(places, weights, strict=True):
                if place is not None and rows is not None:
                    rows.copy_to(place[number])
        gate_up, down, self.gate_up_bias, self.down_bias = places
        assert gate_up is not None and down is not None
        self.gate_up, self.down = gate_up, down
        self.nbytes = sum(place.nbytes for place in places if place is not None)


def _places(count: int, rows: WeightRows) -> torch.Tensor:
    return torch.empty((count, *rows.shape), dtype=rows.dtype, device=rows.device)


def run_experts(
    x: torch.Tensor,
    weights: torch.Tensor,
    experts: torch.Tensor,
    packed: PackedExperts,
    activation: Callable[[torch.Tensor], torch.Tensor],
) -> torch.Tensor:
    top_k = experts.shape[1]
    flat = experts.flatten()
    order = flat.argsort(stable=True)
    tokens = order // top_k
    gathered = x.index_select(0, tokens)
    results = torch.empty_like(gathered)
    start = 0
    for expert, count in enumerate(torch.bincount(flat).tolist()):
        if count:
            own = slice(start, start + count)
            inner = activation(packed.gate_up[expert](gathered[own]))
            results[own] = packed.down[expert](inner)
            start += count
    results *= weights.flatten()[order, None].to(results.dtype)
    return torch.zeros_like(x).index_add_(0, tokens, results)
