"""Token embedding: one row of the table per token."""

from __future__ import annotations

import torch


def embedding(ids: torch.Tensor, weight: torch.Tensor, first_id: int | None = None) -> torch.Tensor:
    """Rows of the table.

    ids: int64 [T]; weight: [rows, hidden]. first_id: the table is a part of the vocabulary, which begins with this id;
    a token outside it gets zeros. None: the table is the whole vocabulary and every id is in it. Returns [T, hidden] of
    the table's dtype.
    """
    if weight.is_cuda:
        from lightllm.ops.triton import embedding as triton_impl

        return triton_impl.embedding(ids, weight, first_id or 0)
    if first_id is None:
        return weight.index_select(0, ids)
    local = ids - first_id
    outside = (local < 0) | (local >= weight.shape[0])
    return weight.index_select(0, local.masked_fill_(outside, 0)).masked_fill_(outside[:, None], 0)
