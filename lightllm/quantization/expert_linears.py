"""Experts in few bits on a CPU: each as the linear layers that its format makes of it."""

from __future__ import annotations

from collections.abc import Callable

from lightllm.ops.linear import PackedLinear
from lightllm.ops.packed_experts import PackedExperts
from lightllm.quantization.linear_spec import LinearSpec
from lightllm.weights.reader import ModuleTensors


def expert_linears(
    linear: Callable[[ModuleTensors, LinearSpec], PackedLinear],
    tensors: ModuleTensors,
    count: int,
    gate_up: Callable[[int], LinearSpec],
    down: Callable[[int], LinearSpec],
) -> PackedExperts:
    """linear: a format's; the others as `WeightFormat.experts` has them."""
    return PackedExperts(
        (linear(tensors, gate_up(number)), linear(tensors, down(number))) for number in range(count)
    )
