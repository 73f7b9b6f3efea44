"""Linear layers with weights in few bits (weight-only: activations are not quantised).

The torch form, on any device: some outputs at a time are dequantised and multiplied, so that the weight stays in its few bits
and what is dequantised fits into the caches of a CPU.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from lightllm.ops.linear import PackedLinear
from lightllm.ops.quantized_weight import QuantizedWeight

_PIECE = 1 << 20
"""Weights that are dequantised at a time on a CPU: 4 MiB in float32."""


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


def pack_quantized(weight: QuantizedWeight, bias: torch.Tensor | None) -> PackedLinear:
    """The fastest form of a weight in few bits for its device. bias: [out] or None."""
    return DequantisedOnUse(weight, bias)
