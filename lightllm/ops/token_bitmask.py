"""Constrained decoding: of some rows only the tokens that their bitmask allows stay possible."""

from __future__ import annotations

import numpy as np
import torch

_MINUS_INFINITY = np.array(-np.inf, np.float32).view(np.int32)[()]


def keep_allowed_(logits: torch.Tensor, entries: torch.Tensor, bitmask: torch.Tensor) -> None:
    """In place, logits[entries[i], t] = -inf where bit t of bitmask[i] is 0; all other logits stay as they are, NaN too.

    logits float32 [S, V], contiguous rows; entries int64 [c], distinct rows of `logits`, c may be 0; bitmask int32 [c, W],
    contiguous. Bit t is bit t % 32 (0: the lowest) of word t // 32, as llguidance writes it; bits from V on are ignored,
    tokens from 32 W on are not allowed.
    """
    if logits.is_cuda:
        from lightllm.ops.triton import token_bitmask as triton_impl

        triton_impl.keep_allowed_(logits, entries, bitmask)
        return
    # Arithmetic on the logits' bits costs the same for every mask. A select (masked fill, `where`) branches on each token:
    # up to seven times as long where allowed and banned tokens alternate.
    rows = logits.numpy().view(np.int32)
    known = min(rows.shape[1], 32 * bitmask.shape[1])
    for entry, packed in zip(entries.tolist(), bitmask.numpy().view(np.uint8)):
        rows[entry, known:] = _MINUS_INFINITY
        row = rows[entry, :known]
        row ^= _MINUS_INFINITY
        row *= np.unpackbits(packed, count=known, bitorder="little")
        row ^= _MINUS_INFINITY
