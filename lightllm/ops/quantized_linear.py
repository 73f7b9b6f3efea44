"""Linear layers with weights in few bits (weight-only: activations are not quantised).

The torch form, on any device: some outputs at a time are dequantised and multiplied, so that the weight stays in its few bits
and what is dequantised fits into the caches of a CPU.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from lightllm.ops.cpu.code_panels import memory_of_panels
from lightllm.ops.cpu.few_bits_linear import few_bits_linear
from lightllm.ops.cpu.widened_linear import widened_linear
from lightllm.ops.linear import PackedLinear
from lightllm.ops.quantized_weight import NIBBLES, QuantizedWeight

_PIECE = 1 << 20
"""Weights that are dequantised at a time on a CPU: 4 MiB in float32."""


def memory_of_codes(element: str, outputs: int, inputs: int, device: torch.device) -> torch.Tensor:
    """Where codes of a weight are written to, see `QuantizedWeight.codes`; on a CPU they can be arranged for a kernel there."""
    dtype = {"int8": torch.int8, "e4m3": torch.float8_e4m3fn}.get(element, torch.uint8)
    width = inputs // 2 if element in NIBBLES else inputs
    if device.type != "cpu":
        return torch.empty(outputs, width, dtype=dtype, device=device)
    return memory_of_panels(outputs, width).view(dtype)


class DequantisedOnUse:
    def __init__(self, weight: QuantizedWeight, bias: torch.Tensor | None) -> None:
        self.weight, self.bias = weight, bias
        self.nbytes = weight.nbytes

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        weight = self.weight
        if weight.inputs is not None:
            x = x.index_select(1, weight.inputs)
        outputs, inputs = weight.shape
        step = outputs if x.is_cuda else max(1, _PIECE // inputs)
        out = x.new_empty(len(x), outputs)
        for first in range(0, outputs, step):
            stop = min(first + step, outputs)
            bias = None if self.bias is None else self.bias[first:stop].to(x.dtype)
            out[:, first:stop] = F.linear(x, weight.dequantise(first, stop).to(x.dtype), bias)
        return out


def pack_quantized(
    weight: QuantizedWeight, bias: torch.Tensor | None, dtype: torch.dtype, in_place: bool = True
) -> PackedLinear:
    """The fastest form of a weight in few bits for its device, of activations in `dtype`. in_place: the caller drops the weight
    afterwards, its memory may be written over. bias: [out] or None."""
    if weight.codes.device.type == "cpu":
        if dtype == torch.bfloat16 and (of_codes := few_bits_linear(weight, bias, in_place)) is not None:
            return of_codes
        if (of_numbers := widened_linear(weight, bias, dtype, in_place)) is not None:
            return of_numbers
    return DequantisedOnUse(weight, bias)
