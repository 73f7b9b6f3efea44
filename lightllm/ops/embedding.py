"""Token embedding: one row of the table per token."""

from __future__ import annotations

import torch


def embedding(ids: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Rows of the table.

    ids: int64 [T], each in [0, vocab); weight: [vocab, hidden]. Returns [T, hidden] of the table's dtype.
    """
    return weight.index_select(0, ids)
