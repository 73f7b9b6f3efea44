"""`ops/penalties.py` in torch: gather, change, scatter, so that equal entries of one row write equal values."""

from __future__ import annotations

import torch


def penalize_tokens_(
    logits: torch.Tensor,
    entries: torch.Tensor,
    token_ids: torch.Tensor,
    counts: torch.Tensor,
    repetition: torch.Tensor,
    frequency: torch.Tensor,
    presence: torch.Tensor,
) -> None:
    where = entries[:, None], token_ids
    values = logits[where]
    values = torch.where(values > 0, values / repetition[:, None], values * repetition[:, None])
    values -= counts * frequency[:, None]
    values -= (counts > 0) * presence[:, None]
    logits[where] = values


def grow_end_tokens_(
    logits: torch.Tensor, entries: torch.Tensor, token_ids: torch.Tensor, growth: torch.Tensor
) -> None:
    values = logits[entries, token_ids]
    logits[entries, token_ids] = values + values.abs() * growth
