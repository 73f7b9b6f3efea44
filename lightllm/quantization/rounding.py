"""Rounds weights to few bits. Used while a checkpoint is loaded, and to write one: both give the same numbers.

Of the inputs of a group, with low = min(w, 0) and high = max(w, 0):

    int8    scale = max|w| / 127            code = round(w / scale)
    int4    scale = (high - low) / 15       zero = round(-low / scale)       code = round(w / scale) + zero    0 to 15
            without zeros: scale = max|w| / 7.5, zero = 8
    e4m3    scale = max|w| / 448            code = e4m3(w / scale)

The scale is rounded to the dtype that it is kept in before it is used.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from lightllm.ops.quantized_weight import MIDDLE
from lightllm.quantization.layout import WHOLE
from lightllm.quantization.quant_types import QuantType

MOST_CODE = 15
"""Of int4."""
_INT8, _E4M3 = 127.0, 448.0


class Grid(NamedTuple):
    """Of some outputs [n, groups]."""

    scales: torch.Tensor
    """Of the dtype that they are kept in."""
    zeros: torch.Tensor | None
    """uint8, in codes 0 to 15."""


def grid_of(weight: torch.Tensor, kind: QuantType, group: int, dtype: torch.dtype) -> Grid:
    """weight: float32 [n, in]; group: inputs that share a scale, the last ones may be fewer; dtype: of the scales."""
    groups = _in_groups(weight, group)
    low, high = groups.amin(-1).clamp_(max=0), groups.amax(-1).clamp_(min=0)
    if kind.zeros:
        scales = _kept((high - low) / MOST_CODE, dtype)
        return Grid(scales, (-low / scales.float()).round_().clamp_(0, MOST_CODE).to(torch.uint8))
    most = {"int8": _INT8, "int4": 7.5, "e4m3": _E4M3}[kind.element]
    return Grid(_kept(torch.maximum(high, -low) / most, dtype), None)


def codes_of(weight: torch.Tensor, kind: QuantType, group: int, grid: Grid) -> torch.Tensor:
    """[n, in] of int8, uint8 (int4, 0 to 15) or float8_e4m3fn. weight: float32 [n, in]."""
    scaled = _in_groups(weight, group) / grid.scales.float()[..., None]
    if kind.element == "e4m3":
        return _flat(scaled.clamp_(-_E4M3, _E4M3), weight).to(torch.float8_e4m3fn)
    if kind.element == "int8":
        return _flat(scaled.round_().clamp_(-_INT8, _INT8), weight).to(torch.int8)
    zeros = MIDDLE if grid.zeros is None else grid.zeros.float()[..., None]
    return _flat(scaled.round_().add_(zeros).clamp_(0, MOST_CODE), weight).to(torch.uint8)


def values_of(codes: torch.Tensor, kind: QuantType, group: int, grid: Grid) -> torch.Tensor:
    """float32 [n, in]: what the codes stand for."""
    numbers = _in_groups(codes.float(), group)
    if kind.element == "int4":
        numbers = numbers - (MIDDLE if grid.zeros is None else grid.zeros.float()[..., None])
    return _flat(numbers * grid.scales.float()[..., None], codes)


def _kept(scales: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Where all weights are 0, or nearly, any scale will do."""
    return scales.clamp_(min=torch.finfo(dtype).tiny).to(dtype)


def _in_groups(weight: torch.Tensor, group: int) -> torch.Tensor:
    """[n, groups, inputs of one]; zeros behind the last input."""
    if group == WHOLE:
        return weight[:, None]
    return torch.nn.functional.pad(weight, (0, -weight.shape[1] % group)).unflatten(1, (-1, group))


def _flat(groups: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    return groups.flatten(1)[:, : like.shape[1]]
