"""Forms of a linear layer's weight, chosen by what the CPU can do.

| CPU                     | weights    | form                                                        | computes in |
|-------------------------|------------|-------------------------------------------------------------|-------------|
| AVX512-BF16 or AMX      | bf16       | oneDNN, packed                                              | bf16        |
| AVX2                    | bf16, fp16 | FBGEMM, packed fp16, widened in registers (2 bytes a weight) | fp32        |
| any                     | fp32       | oneDNN, packed                                              | fp32        |
| any other, or no CPU    | any        | plain                                                       | the weights' |

bf16 numbers of a weight's usual size are exact in fp16; what is smaller than 2**-17 is off by at most 2**-25.
`test/benchmark/cpu_linear.py` measures all forms.
"""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F

_FP16_MAX = 65504.0
_PACK_ROWS = 512
"""Batch size that oneDNN packs for; measured as good for one row as for 512."""


class PackedLinear:
    """A weight [out, in] and its bias in some form; calling it computes x Wᵀ + bias for x [T, in]."""

    nbytes: int

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError


class PlainLinear(PackedLinear):
    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        self.weight, self.bias = weight, bias
        self.nbytes = weight.nbytes

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self.weight, self.bias)


class OneDnnLinear(PackedLinear):
    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        self.packed = torch.ops.mkldnn._reorder_linear_weight(weight, _PACK_ROWS)
        self.bias = bias
        self.nbytes = weight.nbytes

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return torch.ops.mkldnn._linear_pointwise.default(x, self.packed, self.bias, "none", [], "")


class Fp16PackedLinear(PackedLinear):
    """Weights in fp16, activations and sums in fp32."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        self.packed = torch.ops.quantized.linear_prepack_fp16(
            weight.float(), None if bias is None else bias.float()
        )
        self.nbytes = weight.numel() * 2

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return torch.ops.quantized.linear_dynamic_fp16.default(x, self.packed)


@functools.cache
def _has_bf16_instructions() -> bool:
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


@functools.cache
def _has_fbgemm() -> bool:
    return "fbgemm" in torch.backends.quantized.supported_engines


def activation_dtype(device: torch.device, dtype: torch.dtype) -> torch.dtype:
    if device.type != "cpu" or (dtype == torch.bfloat16 and _has_bf16_instructions()):
        return dtype
    return torch.float32


def pack_linear(weight: torch.Tensor, bias: torch.Tensor | None) -> PackedLinear:
    compute = activation_dtype(weight.device, weight.dtype)
    if weight.device.type != "cpu":
        return PlainLinear(weight, bias)
    if weight.dtype != compute and _has_fbgemm() and _fits_fp16(weight):
        return Fp16PackedLinear(weight, bias)
    bias = None if bias is None else bias.to(compute)
    if torch.backends.mkldnn.is_available():
        return OneDnnLinear(weight.to(compute).contiguous(), bias)
    return PlainLinear(weight.to(compute), bias)


def _fits_fp16(weight: torch.Tensor) -> bool:
    low, high = torch.aminmax(weight)
    return bool(low >= -_FP16_MAX) and bool(high <= _FP16_MAX)
