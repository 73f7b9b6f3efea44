"""Penalties for tokens that occurred already, and the growing weight of the tokens that end a request."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightllm.ops.torch import penalties as torch_implementation

if TYPE_CHECKING:
    import torch


def penalize_tokens_(
    logits: "torch.Tensor",
    entries: "torch.Tensor",
    token_ids: "torch.Tensor",
    counts: "torch.Tensor",
    repetition: "torch.Tensor",
    frequency: "torch.Tensor",
    presence: "torch.Tensor",
) -> None:
    """For each listed token with count c, in place: logit / repetition where it is above 0, else logit * repetition;
    then minus c * frequency; then minus presence where c > 0.

    logits float32 [S, V]; entries int64 [P], rows of `logits`; token_ids int64 [P, C], where repeated entries of one row
    must carry the same count; counts float32 [P, C]; the penalties float32 [P].
    """
    if logits.is_cuda:
        from lightllm.ops.triton import penalties as triton_implementation

        triton_implementation.penalize_tokens_(
            logits, entries, token_ids, counts, repetition, frequency, presence
        )
        return
    torch_implementation.penalize_tokens_(logits, entries, token_ids, counts, repetition, frequency, presence)


def grow_end_tokens_(
    logits: "torch.Tensor", entries: "torch.Tensor", token_ids: "torch.Tensor", growth: "torch.Tensor"
) -> None:
    """logit += |logit| * growth for the listed tokens, in place.

    logits float32 [S, V]; entries, token_ids int64 [P], distinct pairs; growth float32 [P].
    """
    if logits.is_cuda:
        from lightllm.ops.triton import penalties as triton_implementation

        triton_implementation.grow_end_tokens_(logits, entries, token_ids, growth)
        return
    torch_implementation.grow_end_tokens_(logits, entries, token_ids, growth)
