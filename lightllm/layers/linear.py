"""Tensor parallel linear layers (Shoeybi et al. 2019, arXiv 1909.08053)."""

from __future__ import annotations

import torch

from lightllm.distributed.tp_group import TpGroup
from lightllm.ops.linear import linear, pack_linear
from lightllm.ops.weight_rows import WeightRows


class ColumnLinear:
    """Each rank holds some of the output features: no communication."""

    def __init__(self, weight: torch.Tensor | WeightRows, bias: torch.Tensor | None) -> None:
        """weight: [out of this rank, in]; bias: [out of this rank]. Both may be dropped by the caller afterwards."""
        self.packed = pack_linear(weight, bias)

    @property
    def nbytes(self) -> int:
        return self.packed.nbytes

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """x: [T, in]. Returns [T, out of this rank]."""
        return linear(x, self.packed)


class RowLinear:
    """Each rank holds some of the input features: the outputs are added up over all ranks."""

    def __init__(
        self,
        weight: torch.Tensor | WeightRows,
        bias: torch.Tensor | None,
        group: TpGroup,
        reduce: bool = True,
    ) -> None:
        """weight: [out, in of this rank]; bias: [out], which rank 0 alone adds; reduce: False where the caller adds up."""
        self.packed = pack_linear(weight, bias if group.rank == 0 else None)
        self.group, self.reduce = group, reduce

    @property
    def nbytes(self) -> int:
        return self.packed.nbytes

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """x: [T, in of this rank]. Returns [T, out], the same on every rank if they are added up."""
        out = linear(x, self.packed)
        return self.group.all_reduce(out) if self.reduce else out
