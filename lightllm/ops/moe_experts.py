"""A mixture's experts: gated MLPs of one shape, of which each token uses some."""

from __future__ import annotations

from collections.abc import Callable

import torch

from lightllm.ops.linear import pack_linear
from lightllm.ops.packed_linear import PackedLinear
from lightllm.ops.torch import moe_experts as torch_impl
from lightllm.ops.torch.moe_experts import Expert, PackedExperts, StackedExperts

__all__ = ["Expert", "PackedExperts", "StackedExperts", "pack_experts", "run_experts"]


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


def run_experts(
    x: torch.Tensor,
    weights: torch.Tensor,
    experts: torch.Tensor,
    packed: PackedExperts | StackedExperts,
    activation: Callable[[torch.Tensor], torch.Tensor],
) -> torch.Tensor:
    """out[t] = sum over j of weights[t, j] * expert(x[t]), the expert being number experts[t, j].

    expert(x) = down(activation(gate_up(x))). x: [T, hidden]; weights float32 and experts int32 [T, top_k] as
    `choose_experts` returns them; activation: from [n, 2 * width], the gate in the first half, to [n, width]. Returns
    [T, hidden] of x's dtype. Each expert's weights are read once, those of experts that no token uses not at all.
    """
    if isinstance(packed, StackedExperts):
        from lightllm.ops.triton import moe_experts as triton_impl

        return triton_impl.run_experts(x, weights, experts, packed, activation)
    return torch_impl.run_experts(x, weights, experts, packed, activation)
