"""The `WeightFormat` of dense checkpoints whose matrices are quantised while they are loaded, some outputs at a time.

A group of inputs that lies across the border of two ranks is read by both, and where an output has one scale all of its
inputs are: the numbers do not depend on how many ranks there are.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import torch

from lightllm.errors import InvalidModel
from lightllm.ops.int8_activations import Int8Activations
from lightllm.ops.linear import PackedLinear, SideBySide, activation_dtype
from lightllm.ops.packed_experts import PackedExperts, StackedExperts
from lightllm.ops.quantized_linear import memory_of_codes, pack_quantized
from lightllm.ops.quantized_weight import QuantizedWeight
from lightllm.quantization.dense import Dense
from lightllm.quantization.expert_linears import expert_linears
from lightllm.quantization.layout import WHOLE
from lightllm.quantization.linear_spec import LinearSpec, Matrix, bias_of
from lightllm.quantization.quant_plan import QuantPlan
from lightllm.quantization.quant_types import QuantType
from lightllm.quantization.quantized import EXPERTS_ARE_DENSE, say_once
from lightllm.quantization.read_layout import rows_of
from lightllm.quantization.rounding import codes_of, grid_of
from lightllm.quantization.words import two_in_a_byte
from lightllm.weights.freed_memory import give_back_freed_memory
from lightllm.weights.reader import ModuleTensors
from lightllm.weights.split import Part

_AT_ONCE = 1 << 18
"""Weights that are rounded at a time."""
_SCRATCH = 20
"""Bytes that are in memory for each of those meanwhile, at most."""


class QuantisedWhileLoading:
    def __init__(self, plan: QuantPlan) -> None:
        self._plan, self._dense = plan, Dense()

    def linear(self, tensors: ModuleTensors, spec: LinearSpec) -> PackedLinear:
        pieces = [self._piece(tensors, part, kind) for part, kind in self._runs(tensors, spec)]
        return pieces[0] if len(pieces) == 1 else SideBySide(pieces)

    def dense(
        self, tensors: ModuleTensors, spec: LinearSpec, dtype: torch.dtype | None = None
    ) -> torch.Tensor:
        return self._dense.dense(tensors, spec, dtype)

    def experts(
        self,
        tensors: ModuleTensors,
        count: int,
        gate_up: Callable[[int], LinearSpec],
        down: Callable[[int], LinearSpec],
    ) -> PackedExperts | StackedExperts:
        kinds = [kind for spec in (gate_up(0), down(0)) for _, kind in self._runs(tensors, spec)]
        if not any(kinds) or tensors.device.type != "cpu":
            if any(kinds):
                say_once(EXPERTS_ARE_DENSE)
            return self._dense.experts(tensors, count, gate_up, down)
        return expert_linears(self.linear, tensors, count, gate_up, down)

    def _runs(
        self, tensors: ModuleTensors, spec: LinearSpec
    ) -> Iterator[tuple[LinearSpec, QuantType | None]]:
        """Neighbouring matrices of one type."""
        runs = itertools.groupby(
            spec.matrices, lambda matrix: self._plan.type_of(tensors.module_names(matrix.name))
        )
        parts = [(kind, tuple(matrices)) for kind, matrices in runs]
        for number, (kind, matrices) in enumerate(parts, 1):
            padding = spec.padding if number == len(parts) else 0
            yield spec._replace(matrices=matrices, padding=padding), kind

    def _piece(self, tensors: ModuleTensors, spec: LinearSpec, kind: QuantType | None) -> PackedLinear:
        if kind is None:
            return self._dense.linear(tensors, spec)
        weight, bias = quantise(tensors, spec, kind), bias_of(tensors, spec)
        if kind.coded_activations and _multiplies_bytes(tensors.device):
            return Int8Activations(weight.codes, weight.scales[:, 0], bias)
        packed = pack_quantized(weight, bias, activation_dtype(tensors.device, tensors.dtype))
        give_back_freed_memory()
        return packed


def _multiplies_bytes(device: torch.device) -> bool:
    """Faster than what it computes of activations as they are: a CPU's kernel splits those into two bytes."""
    return device.type == "cuda"


def quantise(tensors: ModuleTensors, spec: LinearSpec, kind: QuantType) -> QuantizedWeight:
    """The rank's part of all matrices of `spec`. Raises `InvalidModel` that names the module."""
    columns = spec.columns or Part(1, 0, spec.in_features)
    inputs, group = columns.stop - columns.start, kind.group_of(spec.in_features)
    if kind.element == "int4" and inputs % 2:
        module = tensors.prefix + spec.matrices[0].name
        raise InvalidModel(
            f"{module}: {inputs} inputs a rank of 4 bits each are no whole bytes.",
            "Choose another --tp, or leave it dense with --quant_cfg.",
        )
    read = _covering(spec, group)
    own = slice(columns.start - read.start, columns.stop - read.start)
    outputs = spec.padding + sum(
        len(range(*part[1:])) for matrix in spec.matrices for part in rows_of(matrix)
    )
    groups = 1 if group == WHOLE else -(-(read.stop - read.start) // group)
    codes = memory_of_codes(kind.element, outputs, inputs, tensors.device)
    scales = torch.zeros(outputs, groups, dtype=tensors.dtype, device=tensors.device)
    zeros = torch.zeros(outputs, groups, dtype=torch.uint8, device=tensors.device) if kind.zeros else None
    above = 0
    for rows in _rows(tensors, spec, read):
        with tensors.reader.budget(_SCRATCH * rows.numel()):
            values, place = rows.to(tensors.device).float(), slice(above, above + len(rows))
            grid = grid_of(values, kind, group, tensors.dtype)
            found = codes_of(values, kind, group, grid)[:, own]
            codes[place] = two_in_a_byte(found) if kind.element == "int4" else found
            scales[place] = grid.scales
            if zeros is not None and grid.zeros is not None:
                zeros[place] = grid.zeros
            above += len(rows)
        tensors.reader.release_pages(rows)
    codes[above:].view(torch.uint8).zero_()
    give_back_freed_memory()
    group_of = None
    if group != WHOLE and columns.start % group:
        numbers = torch.arange(columns.start, columns.stop) - read.start
        group_of = (numbers // group).int().to(tensors.device)
    return QuantizedWeight(
        kind.element, codes, scales, zeros, inputs if group == WHOLE else group, group_of=group_of
    )


def _covering(spec: LinearSpec, group: int) -> Part:
    """The inputs that share scales with those of the rank."""
    if spec.columns is None or group == WHOLE:
        return Part(1, 0, spec.in_features)
    first, last = spec.columns.start // group, -(-spec.columns.stop // group)
    return Part(1, first * group, min(last * group, spec.in_features))


def _rows(tensors: ModuleTensors, spec: LinearSpec, columns: Part) -> Iterator[torch.Tensor]:
    """Views of all of the rank's outputs, some at a time."""
    most = min(_AT_ONCE, tensors.reader.budget.limit // (4 * _SCRATCH))
    step = max(1, most // (columns.stop - columns.start))
    for matrix in spec.matrices:
        for part in _parts(tensors, spec, matrix, columns):
            yield from part.split(step)
            tensors.reader.release_pages(part)  # a fault in one run maps pages of the one before it again


def _parts(tensors: ModuleTensors, spec: LinearSpec, matrix: Matrix, columns: Part) -> Iterator[torch.Tensor]:
    """[outputs, inputs], where they lie, or of a stack in memory."""
    whole = columns.stop - columns.start == spec.in_features
    within = [] if whole else [columns]
    if spec.stack is None:
        shape = (matrix.out_features, spec.in_features)
        yield from tensors.read(f"{matrix.name}.weight", shape, matrix.rows, within)
        return
    number, total = spec.stack
    stacked = (total, spec.in_features, matrix.out_features)
    outputs = [part._replace(dim=2) for part in matrix.rows]
    for part in tensors.read(matrix.name, stacked, outputs, [Part(0, number, number + 1), *within]):
        # Copied as it lies: rows of its transpose would fetch every page once for each few of them.
        yield tensors.rows([part[0]], part.dtype).load().T if tensors.device.type == "cpu" else part[0].T
