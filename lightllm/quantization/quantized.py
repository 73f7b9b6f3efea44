"""The `WeightFormat` of all checkpoints in few bits: each matrix as its format's `Layout` says, or dense.

What a layer fuses may be kept in several ways (q in 4 bits, v in 8 or not quantised, each with its own act-order): then
each run of matrices that are kept alike is a linear layer, and their outputs are put side by side.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator

import torch

from lightllm.errors import InvalidModel
from lightllm.ops.linear import PackedLinear, SideBySide, activation_dtype
from lightllm.ops.packed_experts import Expert, PackedExperts, StackedExperts
from lightllm.ops.quantized_linear import pack_quantized
from lightllm.quantization.dense import Dense
from lightllm.quantization.expert_linears import expert_linears
from lightllm.quantization.layout import WHOLE, Layout, Layouts
from lightllm.quantization.linear_spec import LinearSpec, Matrix, bias_of
from lightllm.quantization.read_layout import read_weight
from lightllm.quantization.scale_grid import check_group_numbers
from lightllm.weights.freed_memory import give_back_freed_memory
from lightllm.weights.reader import ModuleTensors

_KV_SCALES = ("k_scale", "v_scale", "q_scale", "prob_scale", "k_zero_point", "v_zero_point")
"""Of quantised KV memory, in the module of a layer's attention; not used."""
_NEVER_RANDOM = ("lm_head", "output", "output_layer", "gate", "router")
"""Modules that published checkpoints leave dense; random weights, of which no name is known, do too."""
EXPERTS_ARE_DENSE = "experts in few bits are kept dense: on a GPU they take two bytes a weight"

logger = logging.getLogger(__name__)


class Quantized:
    def __init__(self, layouts: Layouts) -> None:
        self._layouts, self._dense = layouts, Dense()

    def linear(self, tensors: ModuleTensors, spec: LinearSpec) -> PackedLinear:
        pieces = [self._piece(tensors, *run) for run in self._runs(tensors, spec)]
        return pieces[0] if len(pieces) == 1 else SideBySide(pieces)

    def dense(
        self, tensors: ModuleTensors, spec: LinearSpec, dtype: torch.dtype | None = None
    ) -> torch.Tensor:
        parts = []
        for part, layout, numbers in self._runs(tensors, spec):
            if layout is None:
                parts.append(self._dense.dense(tensors, part, dtype))
            else:
                parts.append(read_weight(tensors, part, layout, numbers).dense(dtype or tensors.dtype))
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def experts(
        self,
        tensors: ModuleTensors,
        count: int,
        gate_up: Callable[[int], LinearSpec],
        down: Callable[[int], LinearSpec],
    ) -> PackedExperts | StackedExperts:
        specs = [gate_up(0), down(0)]
        if all(self._layout(tensors, spec, matrix) is None for spec in specs for matrix in spec.matrices):
            return self._dense.experts(tensors, count, gate_up, down)

        if tensors.device.type != "cpu":
            return self._stacked(tensors, count, gate_up, down)
        return expert_linears(self.linear, tensors, count, gate_up, down)

    def _stacked(
        self,
        tensors: ModuleTensors,
        count: int,
        gate_up: Callable[[int], LinearSpec],
        down: Callable[[int], LinearSpec],
    ) -> StackedExperts:
        """For a GPU, whose kernel takes dense experts."""
        say_once(EXPERTS_ARE_DENSE)

        def expert(number: int) -> Expert:
            both, last = gate_up(number), down(number)
            return Expert(
                self.dense(tensors, both),
                self.dense(tensors, last),
                bias_of(tensors, both),
                bias_of(tensors, last),
            )

        return StackedExperts(count, expert)

    def _piece(
        self, tensors: ModuleTensors, spec: LinearSpec, layout: Layout | None, numbers: torch.Tensor | None
    ) -> PackedLinear:
        if layout is None:
            return self._dense.linear(tensors, spec)
        weight = read_weight(tensors, spec, layout, numbers)
        packed = pack_quantized(
            weight, bias_of(tensors, spec), activation_dtype(tensors.device, tensors.dtype)
        )
        give_back_freed_memory()
        return packed

    def _runs(
        self, tensors: ModuleTensors, spec: LinearSpec
    ) -> Iterator[tuple[LinearSpec, Layout | None, torch.Tensor | None]]:
        """Neighbouring matrices that are kept alike, and the groups of their inputs where those are in no order."""
        run: list[Matrix] = []
        layout: Layout | None = None
        numbers: torch.Tensor | None = None
        for matrix in spec.matrices:
            own = self._layout(tensors, spec, matrix)
            if own is not None:
                _check_left_over(tensors, spec, matrix, own)
            own_numbers = None if own is None else _group_numbers(tensors, spec, matrix, own)
            if run and (own != layout or not _same(own_numbers, numbers)):
                yield spec._replace(matrices=tuple(run), padding=0), layout, numbers
                run = []
            run.append(matrix)
            layout, numbers = own, own_numbers
        yield spec._replace(matrices=tuple(run)), layout, numbers

    def _layout(self, tensors: ModuleTensors, spec: LinearSpec, matrix: Matrix) -> Layout | None:
        """As config.json says; where the checkpoint holds a dense matrix in its place that is read.

        Which modules a list in config.json means differs from library to library, so what the checkpoint holds decides.
        """
        dense = matrix.name if spec.stack is not None else f"{matrix.name}.weight"
        layout = self._layouts(tensors.module_names(matrix.name))
        if tensors.reader.is_empty:
            return None if matrix.name.rpartition(".")[2] in _NEVER_RANDOM else layout
        if layout is None:
            return None
        if tensors.has(matrix.name + layout.codes) and any(
            tensors.has(matrix.name + s) for s in layout.scales
        ):
            return layout
        if tensors.has(dense):
            return None
        raise InvalidModel(
            f"The checkpoint has no weight of module {tensors.prefix}{matrix.name}: neither {matrix.name}{layout.codes} with "
            f"its scales, which quantization_config in config.json implies, nor {dense}.",
            "Weights and config.json do not belong together, or the download is not complete.",
        )


@functools.cache
def say_once(line: str) -> None:
    logger.warning("%s", line)


def _same(first: torch.Tensor | None, second: torch.Tensor | None) -> bool:
    if first is None or second is None:
        return first is second
    return torch.equal(first, second)


def _group_numbers(
    tensors: ModuleTensors, spec: LinearSpec, matrix: Matrix, layout: Layout
) -> torch.Tensor | None:
    """int32 [in], unless they are in order."""
    name = matrix.name + layout.group_numbers
    if not layout.group_numbers or not tensors.has(name):
        return None
    (stored,) = tensors.read(name, (spec.in_features,), dtype=torch.int32)
    if layout.group == WHOLE:
        return None
    numbers = stored.clone()
    if torch.equal(numbers, torch.arange(spec.in_features, dtype=torch.int32) // layout.group):
        return None
    check_group_numbers(tensors.prefix + matrix.name, numbers, -(-spec.in_features // layout.group))
    return numbers


def _check_left_over(tensors: ModuleTensors, spec: LinearSpec, matrix: Matrix, layout: Layout) -> None:
    """What else there is of the module is not read; some tools write a bias of zeros where there was none."""
    reader, module = tensors.reader, tensors.prefix + matrix.name
    for suffix in layout.unread:
        reader.ignore(module + suffix)
    for name in _KV_SCALES:
        reader.ignore(tensors.prefix + name)
    bias = f"{matrix.name}.bias"
    if spec.bias or spec.stack is not None or not tensors.has(bias):
        return
    (values,) = tensors.read(bias, (matrix.out_features,))
    if bool(values.any()):
        raise InvalidModel(f"Module {module!r} has a bias, which its architecture has no place for.")
