"""Linear layers: forms of a dense weight, each called as it is. A GPU computes with the plain one; a CPU's is chosen by what
it can do:

| CPU                     | weights    | form                                                        | computes in |
|-------------------------|------------|-------------------------------------------------------------|-------------|
| AVX512-BF16             | bf16       | panels, a kernel of our own (`ops/cpu/panel_linear.py`)      | bf16        |
| AMX                     | bf16       | oneDNN, packed                                              | bf16        |
| AVX2 or AVX512          | bf16, fp16 | FBGEMM, packed fp16, widened in registers (2 bytes a weight) | fp32        |
| any                     | fp32       | oneDNN, packed                                              | fp32        |
| any other               | any        | plain                                                       | the weights' |

bf16 numbers of a weight's usual size are exact in fp16; what is smaller than 2**-17 is off by at most 2**-25.
`test/benchmark/cpu_linear.py` measures all forms.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Protocol

import torch
import torch.nn.functional as F

from lightllm.ops.cpu.panel_linear import panel_linear
from lightllm.ops.cpu_kind import CpuKind, chosen
from lightllm.ops.weight_rows import WeightRows, as_rows

_FP16_MAX = 65504.0
_PACK_ROWS = 512
"""Batch size that oneDNN packs for; measured as good for one row as for 512."""
_EXACT_ROWS = 16
"""Up to so many rows oneDNN computes just those. It makes code for each number of rows that it meets, 600 KB in bf16, and keeps
it: for more rows the number is rounded up, to one of eight between a power of two and the next."""
_WIDEST_STEP = 64
_PIECE_OUTPUTS = 1280
"""A piece has no fewer outputs unless the weight has: each arranges the inputs anew, which costs 6 % with 700 of them."""


class PackedLinear(Protocol):
    """A weight [out, in] and its bias in some form; calling it computes x Wᵀ + bias."""

    nbytes: int

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """x: [T, in] in `activation_dtype`. Returns [T, out] of the same dtype."""


class PlainLinear:
    """The weight as it is, on any device."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        self.weight, self.bias = weight, bias
        self.nbytes = weight.nbytes

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self.weight, self.bias)


def float32_linear(x: torch.Tensor, linear: PackedLinear) -> torch.Tensor:
    """`linear(x)` in float32. On a GPU the product's own sums, of weights of two bytes: neither rounded nor read again."""
    if isinstance(linear, PlainLinear) and linear.bias is None and x.device.type != "cpu" and x.itemsize == 2:
        return torch.mm(x, linear.weight.t(), out_dtype=torch.float32)
    return linear(x).to(torch.float32)


def computed_rows(rows: int) -> int:
    """How many rows oneDNN is given for so many: at most an eighth more."""
    if rows <= _EXACT_ROWS:
        return rows
    step = min(1 << ((rows - 1).bit_length() - 4), _WIDEST_STEP)
    return -(-rows // step) * step


class OneDnnLinear:
    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        self.packed = torch.ops.mkldnn._reorder_linear_weight(weight, _PACK_ROWS)
        self.bias = bias
        self.nbytes = weight.nbytes

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        rows = len(x)
        computed = computed_rows(rows)
        if computed != rows:
            given, x = x, x.new_empty(computed, x.shape[1])
            x[:rows] = given  # what the others hold has no part in these rows' sums
        return torch.ops.mkldnn._linear_pointwise.default(x, self.packed, self.bias, "none", [], "")[:rows]


class Fp16PackedLinear:
    """Weights in fp16, activations and sums in fp32."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        self.packed = torch.ops.quantized.linear_prepack_fp16(
            weight.float(), None if bias is None else bias.float()
        )
        self.nbytes = weight.numel() * 2

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return torch.ops.quantized.linear_dynamic_fp16.default(x, self.packed)


class SideBySide:
    """Pieces of a large weight, some of its outputs each; few, because a single row takes a few per cent longer for each."""

    def __init__(self, pieces: Sequence[PackedLinear]) -> None:
        self.pieces = pieces
        self.nbytes = sum(piece.nbytes for piece in pieces)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        # Faster for any number of rows than copying each to its place.
        x = x.contiguous()
        return torch.cat([piece(x) for piece in self.pieces], 1)


@functools.cache
def _has_bf16_instructions() -> bool:
    """oneDNN says that it supports bf16 on AVX512 too, where it is slower there than fp32."""
    computes_in_fp32 = chosen() in (CpuKind.AVX2, CpuKind.AVX512)
    return not computes_in_fp32 and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


@functools.cache
def _has_fbgemm() -> bool:
    return "fbgemm" in torch.backends.quantized.supported_engines


def activation_dtype(device: torch.device, dtype: torch.dtype) -> torch.dtype:
    """In which dtype a model with weights of `dtype` computes on `device`.

    bfloat16 and float16 are computed in float32 on a CPU without bfloat16 instructions.
    """
    if device.type != "cpu" or (dtype == torch.bfloat16 and _has_bf16_instructions()):
        return dtype
    return torch.float32


def pack_linear(weight: torch.Tensor | WeightRows, bias: torch.Tensor | None) -> PackedLinear:
    """The fastest form of a dense weight for its device. The caller drops `weight` afterwards.

    weight: [out, in] in the model's dtype; bias: [out] or None. On a CPU a large weight is packed in pieces, which are
    fetched one after the other. A format whose weights are not dense gets a function of its own here.
    """
    weight = as_rows(weight)
    if weight.device.type != "cpu":
        return PlainLinear(weight.on_device(), bias)
    compute = activation_dtype(weight.device, weight.dtype)
    bias = None if bias is None else bias.to(compute)
    in_panels = panel_linear(weight, bias) if compute == torch.bfloat16 else None
    if in_panels is not None:
        return in_panels
    halves = weight.dtype != compute and _has_fbgemm()
    if not halves and not torch.backends.mkldnn.is_available():
        return PlainLinear(weight.load(compute), bias)

    def pack_piece(piece: torch.Tensor, first: int) -> PackedLinear:
        offset = None if bias is None else bias[first : first + len(piece)].contiguous()
        if halves and _fits_fp16(piece):
            return Fp16PackedLinear(piece, offset)
        if torch.backends.mkldnn.is_available():
            return OneDnnLinear(piece, offset)
        return PlainLinear(piece.clone(), offset)

    outputs, inputs = weight.shape
    rows = _rows_of_a_piece(outputs, inputs, weight.piece_bytes // compute.itemsize)
    pieces = weight.pack(rows, compute, pack_piece)
    return pieces[0] if len(pieces) == 1 else SideBySide(pieces)


def _rows_of_a_piece(outputs: int, inputs: int, most: int) -> int:
    """Of pieces of at most so many weights, as equal as possible; whole cache lines of outputs, of which kernels compute
    several at once."""
    count = min(-(-outputs * inputs // most), max(1, outputs // _PIECE_OUTPUTS))
    return -(-outputs // (count * 64)) * 64


def _fits_fp16(weight: torch.Tensor) -> bool:
    low, high = torch.aminmax(weight)
    return bool(low >= -_FP16_MAX) and bool(high <= _FP16_MAX)
