"""Reads a rank's part of matrices that are kept as a `Layout` says, into the form that is computed with.

Words that lie across the border of two ranks are read by both.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch

from lightllm.errors import InvalidModel
from lightllm.ops.quantized_linear import memory_of_codes
from lightllm.ops.quantized_weight import MIDDLE, NIBBLES, QuantizedWeight
from lightllm.quantization.layout import WHOLE, Layout
from lightllm.quantization.linear_spec import LinearSpec, Matrix
from lightllm.quantization.scale_grid import Grid, read_grid
from lightllm.quantization.words import Words, bytes_of, elements, two_in_a_byte
from lightllm.weights.freed_memory import give_back_freed_memory
from lightllm.weights.reader import ModuleTensors
from lightllm.weights.split import Part

_CHUNK_BYTES = 4 << 20
"""Of a checkpoint, unpacked at a time; less where its largest tensor is small."""
_SCRATCH = 8
"""Bytes that are in memory for each of those meanwhile, at most."""


def read_weight(
    tensors: ModuleTensors, spec: LinearSpec, layout: Layout, group_numbers: torch.Tensor | None = None
) -> QuantizedWeight:
    """All matrices of `spec`, which are kept in one layout; group_numbers: int32 [in], where inputs are grouped in any order.

    Raises `InvalidModel` that names the tensor."""
    columns = spec.columns or Part(1, 0, spec.in_features)
    inputs, element = columns.stop - columns.start, _in_memory(layout)
    if element in NIBBLES and inputs % 2:
        module = tensors.prefix + spec.matrices[0].name
        raise InvalidModel(
            f"{module}: {inputs} inputs a rank of {layout.bits} bits each are no whole bytes.",
            "Choose another --tp.",
        )
    outputs = [sum(len(range(*part[1:])) for part in rows_of(matrix)) for matrix in spec.matrices]
    codes = memory_of_codes(element, sum(outputs) + spec.padding, inputs, tensors.device)
    codes[sum(outputs) :].view(torch.uint8).zero_()
    above = 0
    for matrix, count in zip(spec.matrices, outputs):
        _read_codes(tensors, spec, layout, matrix, columns, codes[above : above + count])
        above += count
    grid = read_grid(tensors, spec, layout, columns, group_numbers is not None)
    group_of, order = _groups(layout, columns, group_numbers)
    weight = QuantizedWeight(
        element, codes, grid.scales, _zeros_needed(grid, element), inputs if layout.group == WHOLE else layout.group,
        grid.rows, None if group_of is None else group_of.to(tensors.device),
        None if order is None else order.to(tensors.device),
    )  # fmt: skip
    if order is not None:
        _reorder(weight, order, _chunk_bytes(tensors))
    return weight


def rows_of(matrix: Matrix) -> tuple[Part, ...]:
    return matrix.rows or (Part(0, 0, matrix.out_features),)


def _in_memory(layout: Layout) -> str:
    if layout.element in ("e4m3", "e2m1"):
        return layout.element
    return "int8" if layout.element == "signed" or layout.bits == 8 else "int4"


def _zeros_needed(grid: Grid, element: str) -> torch.Tensor | None:
    usual = MIDDLE if element == "int4" else 0
    return None if grid.zeros is None or bool((grid.zeros == usual).all()) else grid.zeros


def _groups(
    layout: Layout, columns: Part, group_numbers: torch.Tensor | None
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """The group of each input if that is not its number // group, and the order that inputs are put in."""
    first, last = columns.start, columns.stop
    if group_numbers is not None:
        own = group_numbers[first:last]
        order = own.argsort(stable=True)
        if torch.equal(own[order], torch.arange(last - first, dtype=own.dtype) // layout.group):
            return None, order
        return own, None
    if layout.group == WHOLE or first % layout.group == 0:
        return None, None
    return (torch.arange(first, last) // layout.group - first // layout.group).int(), None


def _reorder(weight: QuantizedWeight, order: torch.Tensor, nbytes: int) -> None:
    """Puts columns of codes in another order, where they are."""
    codes = weight.codes
    step = max(1, nbytes // codes.shape[1])
    for rows in codes.split(step):
        if weight.element in NIBBLES:
            rows.copy_(two_in_a_byte(torch.stack((rows & 15, rows >> 4), -1).flatten(1)[:, order]))
        else:
            rows.copy_(rows[:, order])


def _read_codes(
    tensors: ModuleTensors, spec: LinearSpec, layout: Layout, matrix: Matrix, columns: Part, out: torch.Tensor
) -> None:
    """out: the rows of codes of this matrix."""
    name, shape = matrix.name + layout.codes, (matrix.out_features, spec.in_features)
    above = 0
    for part, source, offset in _sources(tensors, spec, layout, matrix, name, shape, columns):
        count = len(range(*part[1:]))
        own = out[above : above + count]
        above += count
        for chunk in source.chunks():
            with tensors.reader.budget(_SCRATCH * chunk.words.nbytes):
                _place(layout, chunk, offset, part, own)
            tensors.reader.release_pages(chunk.words)
        tensors.reader.release_pages(
            source.words
        )  # a fault in one chunk maps pages of the one before it again
        give_back_freed_memory()  # what was unpacked on the way


def _chunk_bytes(tensors: ModuleTensors) -> int:
    """Several threads find room for their scratch beside each other."""
    return min(_CHUNK_BYTES, tensors.reader.budget.limit // (16 * _SCRATCH))


class _Chunk(NamedTuple):
    words: torch.Tensor
    first: int
    """Of the source's first dimension."""


class _Source(NamedTuple):
    words: torch.Tensor
    step: int

    def chunks(self) -> Iterator[_Chunk]:
        for first in range(0, len(self.words), self.step):
            yield _Chunk(self.words[first : first + self.step], first)


def _sources(
    tensors: ModuleTensors,
    spec: LinearSpec,
    layout: Layout,
    matrix: Matrix,
    name: str,
    shape: tuple[int, int],
    columns: Part,
) -> Iterator[tuple[Part, _Source, int]]:
    """For each part of the outputs its words in the checkpoint, and at which of the numbers in them the rank's begin."""
    rows, words = rows_of(matrix), Words(32, layout.bits)
    within: tuple[Part, ...]
    (outputs, inputs), offset = shape, 0
    if layout.word == "uint8":
        assert spec.stack is not None
        number, total = spec.stack
        begin, end = columns.start // 32, -(-columns.stop // 32)
        within = (Part(0, number, number + 1), Part(2, begin, end))
        read = tensors.read(
            name,
            (total, outputs, -(-inputs // 32), 16),
            [part._replace(dim=1) for part in rows],
            within,
            torch.uint8,
        )
        read, offset = [tensor[0].flatten(1) for tensor in read], columns.start - begin * 32
    elif layout.element in ("signed", "e4m3"):
        dtype = torch.int8 if layout.element == "signed" else torch.float8_e4m3fn
        read = tensors.read(name, shape, rows, (columns,) if spec.columns else (), dtype)
    elif layout.packed_outputs:
        within = (columns._replace(dim=0),) if spec.columns else ()
        covering = [words.covering(part)._replace(dim=1) for part in rows]
        read = tensors.read(name, (inputs, words.count(outputs)), covering, within, torch.int32)
    else:
        dim, covering_columns = 1 - layout.inputs_first, words.covering(columns)
        offset = columns.start - words.first(covering_columns)
        within = (covering_columns._replace(dim=dim),) if spec.columns else ()
        whole = (words.count(inputs), outputs) if layout.inputs_first else (outputs, words.count(inputs))
        read = tensors.read(name, whole, [part._replace(dim=1 - dim) for part in rows], within, torch.int32)
    for part, tensor in zip(rows, read):
        step = max(1, _chunk_bytes(tensors) // max(1, tensor[:1].nbytes))
        if layout.inputs_first:  # whole bytes of codes, whole words
            step = len(tensor) if offset % 2 else -(-step // (2 * words.words)) * 2 * words.words
        yield part, _Source(tensor, step), offset


def _place(layout: Layout, chunk: _Chunk, offset: int, part: Part, out: torch.Tensor) -> None:
    """Writes the codes in some words to their place in `out`, the part's rows."""
    words, first = chunk
    if layout.element in ("signed", "e4m3"):
        out[first : first + len(words)].copy_(words)
        return
    packing = Words(32, layout.bits)
    if layout.packed_outputs:
        own = part.start - packing.first(packing.covering(part))
        numbers = elements(words, layout.bits, layout.order)[
            :, own : own + part.stop - part.start : part.step
        ].T
        begin = first
    else:
        if layout.inputs_first:
            begin, words = first // packing.words * packing.numbers - offset, words.T
        else:
            begin, out = -offset, out[first : first + len(words)]
        if layout.bits == 4 and begin % 2 == 0:
            _place_bytes(bytes_of(words), begin // 2, out)
            return
        numbers = elements(words, layout.bits, ())
    if layout.bits == 8:
        _place_bytes((numbers ^ 128).view(torch.int8), begin, out)
        return
    inputs = 2 * out.shape[1]
    numbers = numbers[:, max(-begin, 0) : inputs - begin]
    if layout.element == "int":
        numbers = numbers + (MIDDLE - (1 << layout.bits - 1))
    _place_bytes(two_in_a_byte(numbers), max(begin, 0) // 2, out)


def _place_bytes(codes: torch.Tensor, begin: int, out: torch.Tensor) -> None:
    """Codes whose first is column `begin` of `out`; what lies outside of it is left out."""
    codes = codes[:, max(-begin, 0) : out.shape[1] - begin]
    begin = max(begin, 0)
    out[:, begin : begin + codes.shape[1]].copy_(codes)
