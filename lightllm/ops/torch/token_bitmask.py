"""`ops/token_bitmask.py` on a CPU: arithmetic on the logits' bits, which costs the same for every mask. A select (masked
fill, `where`) branches on each token: up to seven times as long where allowed and banned tokens alternate."""

from __future__ import annotations

import numpy as np
import torch

_MINUS_INFINITY = np.array(-np.inf, np.float32).view(np.int32)[()]


def keep_allowed_(logits: torch.Tensor, entries: torch.Tensor, bitmask: torch.Tensor) -> None:
    rows = logits.numpy().view(np.int32)
    known = min(rows.shape[1], 32 * bitmask.shape[1])
    for entry, packed in zip(entries.tolist(), bitmask.numpy().view(np.uint8)):
        rows[entry, known:] = _MINUS_INFINITY
        row = rows[entry, :known]
        row ^= _MINUS_INFINITY
        row *= np.unpackbits(packed, count=known, bitorder="little")
        row ^= _MINUS_INFINITY
