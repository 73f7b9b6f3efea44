"""Tensor parallel linear layers (Shoeybi et al. 2019, arXiv 1909.08053).

Column parallel, each rank holds some of the output features: a `PackedLinear` of them, for it needs no communication.
Row parallel, each rank holds some of the input features: `RowLinear`.
"""

from __future__ import annotations

import torch

from lightllm.distributed.tp_group import TpGroup
from lightllm.ops.linear import PackedLinear


class RowLinear:
    """Each rank holds some of the input features: the outputs are added up over all ranks."""

    def __init__(self, packed: PackedLinear, group: TpGroup, reduce: bool = True) -> None:
        """packed: [out, in of this rank], on rank 0 alone with a bias; reduce: False where the caller adds up."""
        self.packed, self.group, self.reduce = packed, group, reduce

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """x: [T, in of this rank]. Returns [T, out], the same on every rank if they are added up."""
        out = self.packed(x)
        return self.group.all_reduce(out) if self.reduce else out
