"""Reads the scales and zeros of matrices: grids with a row for each output, for some outputs or for all of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from lightllm.errors import InvalidModel
from lightllm.ops.quantized_weight import MIDDLE
from lightllm.quantization.layout import WHOLE, Layout
from lightllm.quantization.linear_spec import LinearSpec, Matrix
from lightllm.quantization.words import Words, each_plus, elements
from lightllm.weights.reader import ModuleTensors
from lightllm.weights.split import Part


class Grid(NamedTuple):
    scales: torch.Tensor
    """[rows, groups of this rank]"""
    zeros: torch.Tensor | None
    """The same shape, in the numbers of codes in memory."""
    rows: torch.Tensor | None
    """int32 [out of this rank], the row of each output; None: its own."""


def read_grid(
    tensors: ModuleTensors, spec: LinearSpec, layout: Layout, columns: Part, all_groups: bool
) -> Grid:
    """all_groups: those of all inputs, not of the rank's alone."""
    groups = _groups(layout, spec, columns, all_groups)
    scales: list[torch.Tensor] = []
    zeros: list[torch.Tensor] = []
    rows: list[torch.Tensor] = []
    above = 0
    for matrix in spec.matrices:
        parts = matrix.rows or (Part(0, 0, matrix.out_features),)
        name = matrix.name + next(
            (s for s in layout.scales if tensors.has(matrix.name + s)), layout.scales[0]
        )
        found = _read(
            tensors, spec, layout, matrix, name, parts, groups, _dtype_of_scales(tensors, name, layout)
        )
        scales += found
        if layout.zeros:
            zeros += _read_zeros(tensors, spec, layout, matrix, parts, groups)
        if layout.scale_rows != 1:
            for part, values in zip(parts, found):
                own = _row_of(layout, torch.arange(*part[1:])) - _row_of(layout, torch.tensor(part.start))
                rows.append(own + above)
                above += len(values)
    count = spec.padding if layout.scale_rows == 1 else min(spec.padding, 1)
    if count:
        for parts_of in (scales, zeros) if zeros else (scales,):
            parts_of.append(parts_of[0].new_zeros(count, parts_of[0].shape[1]))
        rows.append(torch.full((spec.padding,), above))
    joined = _exponents(torch.cat(scales)) if layout.exponents else torch.cat(scales)
    device = tensors.device
    return Grid(
        joined.to(device), torch.cat(zeros).to(device) if zeros else None,
        torch.cat(rows).int().to(device) if layout.scale_rows != 1 else None,
    )  # fmt: skip


def _groups(layout: Layout, spec: LinearSpec, columns: Part, all_groups: bool) -> Part | None:
    """The groups that a rank's inputs are of, or None: all."""
    if layout.group == WHOLE or all_groups or spec.columns is None:
        return None
    return Part(1, columns.start // layout.group, -(-columns.stop // layout.group))


def _row_of(layout: Layout, outputs: torch.Tensor) -> torch.Tensor:
    return outputs * 0 if layout.scale_rows == WHOLE else outputs // layout.scale_rows


def _covering(layout: Layout, part: Part) -> Part:
    if layout.scale_rows == WHOLE:
        return Part(0, 0, 1)
    if layout.scale_rows == 1:
        return part
    return Part(0, part.start // layout.scale_rows, -(-part.stop // layout.scale_rows))


def _read(
    tensors: ModuleTensors,
    spec: LinearSpec,
    layout: Layout,
    matrix: Matrix,
    name: str,
    parts: Sequence[Part],
    groups: Part | None,
    dtype: torch.dtype | None,
) -> list[torch.Tensor]:
    """Of a grid that is not packed, for each part [rows, groups]."""
    height = 1 if layout.scale_rows == WHOLE else -(-matrix.out_features // layout.scale_rows)
    width = 1 if layout.group == WHOLE else -(-spec.in_features // layout.group)
    stacked = 0 if spec.stack is None else 1
    shape = (width, height) if layout.inputs_first else (height, width)
    within = [] if spec.stack is None else [Part(0, spec.stack.number, spec.stack.number + 1)]
    row_dim = stacked + layout.inputs_first
    if groups is not None:
        within.append(groups._replace(dim=stacked + 1 - layout.inputs_first))
    covering = [_covering(layout, part)._replace(dim=row_dim) for part in parts]
    stored = tensors.stored(name)
    if stored is not None and len(stored.shape) < 2 and width == 1:
        # One scale a row, or for all: [rows] and [] mean the same.
        given = (height,) if stored.shape or height > 1 else ()
        if given:
            read = tensors.read(name, given, [part._replace(dim=0) for part in covering], (), dtype)
        else:
            read = tensors.read(name, given, (), (), dtype) * len(parts)
        return [_kept(tensors, tensor.reshape(-1, 1)) for tensor in read]
    whole = shape if spec.stack is None else (spec.stack.total, *shape)
    read = tensors.read(name, whole, covering, within, dtype)
    read = [tensor[0] if stacked else tensor for tensor in read]
    return [_kept(tensors, tensor.T if layout.inputs_first else tensor) for tensor in read]


def _kept(tensors: ModuleTensors, tensor: torch.Tensor) -> torch.Tensor:
    """A copy of what lies in a file."""
    powers = tensor.dtype == torch.float8_e8m0fnu
    copy = tensor.float() if powers else tensor.clone(memory_format=torch.contiguous_format)
    tensors.reader.release_pages(tensor)
    return copy


def _dtype_of_scales(tensors: ModuleTensors, name: str, layout: Layout) -> torch.dtype | None:
    if layout.exponents:
        return torch.uint8
    stored = tensors.stored(name)
    return stored.dtype if stored is not None and stored.dtype == torch.float8_e8m0fnu else None


def _exponents(scales: torch.Tensor) -> torch.Tensor:
    return scales.view(torch.float8_e8m0fnu)


def _read_zeros(
    tensors: ModuleTensors,
    spec: LinearSpec,
    layout: Layout,
    matrix: Matrix,
    parts: Sequence[Part],
    groups: Part | None,
) -> list[torch.Tensor]:
    name = matrix.name + layout.zeros
    if layout.element == "signed":
        return _read(tensors, spec, layout, matrix, name, parts, groups, torch.int8)
    packing, middle = Words(32, layout.bits), 1 << layout.bits - 1
    width = 1 if layout.group == WHOLE else -(-spec.in_features // layout.group)
    row_dim = int(layout.inputs_first)
    shape = (
        (width, packing.count(matrix.out_features))
        if row_dim
        else (packing.count(matrix.out_features), width)
    )
    covering = [packing.covering(part)._replace(dim=row_dim) for part in parts]
    within = [] if groups is None else [groups._replace(dim=1 - row_dim)]
    found = []
    added = each_plus(layout.zeros_added, layout.bits) if 32 % layout.bits == 0 else 0
    for part, words in zip(parts, tensors.read(name, shape, covering, within, torch.int32)):
        numbers = elements((words if row_dim else words.T) + added, layout.bits, layout.order)
        own = part.start - packing.first(packing.covering(part))
        numbers = numbers[:, own : own + part.stop - part.start : part.step].T
        if layout.zeros_added and 32 % layout.bits:
            numbers = numbers + layout.zeros_added & (1 << layout.bits) - 1
        tensors.reader.release_pages(words)
        if layout.bits == 8:
            found.append((numbers ^ 128).view(torch.int8))
        else:
            found.append((numbers + (MIDDLE - middle)).contiguous())
    return found


def check_group_numbers(module: str, numbers: torch.Tensor, groups: int) -> None:
    if len(numbers) and not 0 <= int(numbers.min()) <= int(numbers.max()) < groups:
        raise InvalidModel(
            f"{module}: inputs are of groups {int(numbers.min())} to {int(numbers.max())}, scales are there of {groups}."
        )
