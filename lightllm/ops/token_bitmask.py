"""Constrained decoding: of some rows only the tokens that their bitmask allows stay possible."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightllm.ops.torch import token_bitmask as torch_implementation

if TYPE_CHECKING:
    import torch


def keep_allowed_(logits: "torch.Tensor", entries: "torch.Tensor", bitmask: "torch.Tensor") -> None:
    """In place, logits[entries[i], t] = -inf where bit t of bitmask[i] is 0; all other logits stay as they are, NaN too.

    logits float32 [S, V], contiguous rows; entries int64 [c], distinct rows of `logits`, c may be 0; bitmask int32 [c, W],
    contiguous. Bit t is bit t % 32 (0: the lowest) of word t // 32, as llguidance writes it; bits from V on are ignored,
    tokens from 32 W on are not allowed.
    """
    if logits.is_cuda:
        from lightllm.ops.triton import token_bitmask as triton_implementation

        triton_implementation.keep_allowed_(logits, entries, bitmask)
        return
    torch_implementation.keep_allowed_(logits, entries, bitmask)
