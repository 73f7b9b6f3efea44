"""What a mixture's layer holds: its experts, gated MLPs of one shape, in the form that their device computes with."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch

from lightllm.ops.linear import PackedLinear, pack_linear
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


def pack_experts(
    device: torch.device, count: int, expert: Callable[[int], Expert]
) -> PackedExperts | StackedExperts:
    """Dense weights, `expert(i)` for all of them, in the device's form: packed one by one on a CPU, stacked on a GPU.

    Experts of another format are `PackedExperts` of its linears, on any device.
    """
    if device.type != "cpu":
        return StackedExperts(count, expert)
    return PackedExperts(_packed(expert(number)) for number in range(count))


def _packed(expert: Expert) -> tuple[PackedLinear, PackedLinear]:
    return pack_linear(expert.gate_up, expert.gate_up_bias), pack_linear(expert.down, expert.down_bias)
