"""A format of weights that only tests have: int8, with one scale for each output.

A matrix is `<name>.weight` int8 [out, in] and `<name>.weight_scale` [out], in a stack `<name>` int8 [total, in, out] and
`<name>_scale` [total, out]. A layer without a scale is dense.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from lightllm.ops.linear import PackedLinear
from lightllm.ops.packed_experts import PackedExperts, StackedExperts
from lightllm.quantization.dense import Dense
from lightllm.quantization.linear_spec import LinearSpec, bias_of, matrix_rows, output_values, transposed_rows
from lightllm.weights.reader import ModuleTensors
from support.model_zoo import read_tensors, write_checkpoint

METHOD = "int8-rows"


class ScaledRowsLinear:
    def __init__(self, weight: torch.Tensor, scales: torch.Tensor, bias: torch.Tensor | None) -> None:
        self.weight, self.scales, self.bias = weight, scales, bias
        self.nbytes = weight.nbytes + scales.nbytes

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.linear(x, dequantised(self.weight, self.scales), self.bias)


class ScaledRows:
    def __init__(self, settings: Mapping[str, Any]) -> None:
        assert settings["quant_method"] == METHOD

    def linear(self, tensors: ModuleTensors, spec: LinearSpec) -> PackedLinear:
        if not has_scales(tensors, spec):
            return Dense().linear(tensors, spec)
        return ScaledRowsLinear(*read(tensors, spec), bias_of(tensors, spec))

    def dense(
        self, tensors: ModuleTensors, spec: LinearSpec, dtype: torch.dtype | None = None
    ) -> torch.Tensor:
        if not has_scales(tensors, spec):
            return Dense().dense(tensors, spec, dtype)
        return dequantised(*read(tensors, spec)).to(dtype or tensors.dtype)

    def experts(
        self,
        tensors: ModuleTensors,
        count: int,
        gate_up: Callable[[int], LinearSpec],
        down: Callable[[int], LinearSpec],
    ) -> PackedExperts | StackedExperts:
        return PackedExperts(
            (self.linear(tensors, gate_up(number)), self.linear(tensors, down(number)))
            for number in range(count)
        )


def has_scales(tensors: ModuleTensors, spec: LinearSpec) -> bool:
    return tensors.has(spec.matrices[0].name + scale_suffix(spec))


def scale_suffix(spec: LinearSpec) -> str:
    return ".weight_scale" if spec.stack is None else "_scale"


def read(tensors: ModuleTensors, spec: LinearSpec) -> tuple[torch.Tensor, torch.Tensor]:
    if spec.stack is None:
        weight = matrix_rows(tensors, spec, ".weight", torch.int8)
    else:
        weight = transposed_rows(tensors, spec, torch.int8)
    return weight.load(), output_values(tensors, spec, scale_suffix(spec))


def dequantised(weight: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    return weight.to(scales.dtype) * scales[:, None]


def quantise_checkpoint(path: Path, quantised: Path, plain: Path) -> int:
    """Writes a checkpoint in this format, and a dense one of the same numbers. Returns how many matrices are in it.

    Norms, routers and vectors stay as they are.
    """
    raw, tensors = json.loads((path / "config.json").read_text()), read_tensors(path)
    few, same, count = dict(tensors), dict(tensors), 0
    for name, tensor in tensors.items():
        stacked = tensor.dim() == 3
        if not stacked and (tensor.dim() != 2 or "norm" in name or not name.endswith(".weight")):
            continue
        if name.endswith("gate.weight") or name.endswith("_bias"):
            continue
        inputs = 1  # of [out, in] and of [total, in, out]
        scales = tensor.abs().amax(inputs) / 127
        few[name] = (tensor / scales.unsqueeze(inputs)).round().to(torch.int8)
        few[f"{name}_scale"] = scales
        same[name] = few[name].float() * scales.unsqueeze(inputs)
        count += 1
    write_checkpoint(quantised, few, {**raw, "quantization_config": {"quant_method": METHOD}})
    write_checkpoint(plain, same, raw)
    return count
