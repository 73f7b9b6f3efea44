"""Penalties for tokens that occurred already, and the growing weight of the tokens that end a request."""

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
    """For each listed token with count c, in place: logit / repetition where it is above 0, else logit * repetition;
    then minus c * frequency; then minus presence where c > 0.

    logits float32 [S, V]; entries int64 [P], rows of `logits`; token_ids int64 [P, C], where repeated entries of one row
    must carry the same count; counts float32 [P, C]; the penalties float32 [P].
    """
    if logits.is_cuda:
        from lightllm.ops.triton import penalties as triton_impl

        triton_impl.penalize_tokens_(logits, entries, token_ids, counts, repetition, frequency, presence)
        return
    # Gathered, changed and scattered, so that equal entries of one row write equal values.
    where = entries[:, None], token_ids
    values = logits[where]
    values = torch.where(values > 0, values / repetition[:, None], values * repetition[:, None])
    values -= counts * frequency[:, None]
    values -= (counts > 0) * presence[:, None]
    logits[where] = values


def grow_end_tokens_(
    logits: torch.Tensor, entries: torch.Tensor, token_ids: torch.Tensor, growth: torch.Tensor
) -> None:
    """logit += |logit| * growth for the listed tokens, in place.

    logits float32 [S, V]; entries, token_ids int64 [P], distinct pairs; growth float32 [P].
    """
    if logits.is_cuda:
        from lightllm.ops.triton import penalties as triton_impl

        triton_impl.grow_end_tokens_(logits, entries, token_ids, growth)
        return
    values = logits[entries, token_ids]
    logits[entries, token_ids] = values + values.abs() * growth
