"""Weights of two or four bytes: `<name>.weight` [out, in] and `<name>.bias` [out]; stacks see `Stack`."""

from __future__ import annotations

from collections.abc import Callable

import torch

from lightllm.ops.linear import PackedLinear, pack_linear
from lightllm.ops.packed_experts import Expert, PackedExperts, StackedExperts, pack_experts
from lightllm.ops.weight_rows import WeightRows
from lightllm.quantization.linear_spec import LinearSpec, bias_of, matrix_rows, transposed_rows
from lightllm.weights.freed_memory import give_back_freed_memory
from lightllm.weights.reader import ModuleTensors


class Dense:
    def linear(self, tensors: ModuleTensors, spec: LinearSpec) -> PackedLinear:
        return pack_linear(*weight_and_bias(tensors, spec))

    def dense(
        self, tensors: ModuleTensors, spec: LinearSpec, dtype: torch.dtype | None = None
    ) -> torch.Tensor:
        return weight_and_bias(tensors, spec)[0].load(dtype)

    def experts(
        self,
        tensors: ModuleTensors,
        count: int,
        gate_up: Callable[[int], LinearSpec],
        down: Callable[[int], LinearSpec],
    ) -> PackedExperts | StackedExperts:
        def expert(number: int) -> Expert:
            give_back_freed_memory()  # a layer of experts is many times as large as its largest matrix
            both, both_bias = weight_and_bias(tensors, gate_up(number))
            last, last_bias = weight_and_bias(tensors, down(number))
            return Expert(both, last, both_bias, last_bias)

        return pack_experts(tensors.device, count, expert)


def weight_and_bias(tensors: ModuleTensors, spec: LinearSpec) -> tuple[WeightRows, torch.Tensor | None]:
    """The weight is still in the checkpoint."""
    weight = matrix_rows(tensors, spec, ".weight") if spec.stack is None else transposed_rows(tensors, spec)
    return weight, bias_of(tensors, spec)
