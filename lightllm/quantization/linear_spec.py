"""What part of which matrices of a checkpoint one linear layer of a rank is made of, and how a format reads it."""

from __future__ import annotations

from typing import NamedTuple

import torch

from lightllm.ops.weight_rows import WeightRows
from lightllm.weights.reader import ModuleTensors
from lightllm.weights.split import Part


class Matrix(NamedTuple):
    """A logical matrix [out, in], whatever tensors the format keeps it in."""

    name: str
    """A dense one is the tensor `<name>.weight`, its bias `<name>.bias`."""
    out_features: int
    rows: tuple[Part, ...] = ()
    """Outputs that the rank computes, in order; none: all."""


class Stack(NamedTuple):
    """The matrix is one of `total` in a tensor, as experts are. A dense one is number `number` of `<name>` [total, in, out], its
    bias of `<name>_bias` [total, out]."""

    number: int
    total: int


class LinearSpec(NamedTuple):
    """A layer whose output is those of its matrices side by side; sizes are the whole model's."""

    matrices: tuple[Matrix, ...]
    in_features: int
    columns: Part | None = None
    """Inputs that the rank has (`dim` 1); None: all."""
    bias: bool = False
    """The checkpoint has one."""
    adds_bias: bool = True
    """False: another rank adds it."""
    padding: int = 0
    """Outputs that are always 0, after the others."""
    stack: Stack | None = None


def matrix_rows(
    tensors: ModuleTensors, spec: LinearSpec, suffix: str, dtype: torch.dtype | None = None
) -> WeightRows:
    """The rank's part of the tensors `<name><suffix>` [out, in], one below the other, still in the checkpoint.

    dtype: of the tensors, None: any of dense ones.
    """
    within = () if spec.columns is None else (spec.columns,)
    parts: list[torch.Tensor] = []
    for name, out_features, rows in spec.matrices:
        parts += tensors.read(name + suffix, (out_features, spec.in_features), rows, within, dtype)
    if spec.padding:
        parts.append(parts[0].new_zeros(spec.padding, parts[0].shape[1]))
    return tensors.rows(parts, dtype)


def transposed_rows(tensors: ModuleTensors, spec: LinearSpec, dtype: torch.dtype | None = None) -> WeightRows:
    """The same of a matrix in the stack `<name>` [total, in, out], in memory."""
    assert spec.stack is not None
    (number, total), ((name, out_features, rows),) = spec.stack, spec.matrices
    within = (
        [Part(0, number, number + 1)] if spec.columns is None else [Part(0, number, number + 1), spec.columns]
    )
    outputs = [part._replace(dim=2) for part in rows]
    parts = tensors.read(name, (total, spec.in_features, out_features), outputs, within, dtype)
    # Copied as it lies before it is transposed: a copy of columns would fetch every page once for each few of them.
    return tensors.rows([tensors.rows([part[0]], dtype).load().T.contiguous() for part in parts], dtype)


def output_values(tensors: ModuleTensors, spec: LinearSpec, suffix: str) -> torch.Tensor:
    """Of `<name><suffix>` [out], in a stack [total, out], one number for each of the rank's outputs."""
    parts: list[torch.Tensor] = []
    for name, out_features, rows in spec.matrices:
        if spec.stack is None:
            parts += tensors.read(name + suffix, (out_features,), rows)
        else:
            number, total = spec.stack
            outputs, within = [part._replace(dim=1) for part in rows], [Part(0, number, number + 1)]
            stacked = tensors.read(name + suffix, (total, out_features), outputs, within)
            parts += [part[0] for part in stacked]
    if spec.padding:
        parts.append(parts[0].new_zeros(spec.padding))
    return tensors.rows(parts).load()


def bias_of(tensors: ModuleTensors, spec: LinearSpec) -> torch.Tensor | None:
    """[out of this rank], or None. Read by every rank, so that no tensor is left over."""
    bias = output_values(tensors, spec, ".bias" if spec.stack is None else "_bias") if spec.bias else None
    return bias if spec.adds_bias else None
