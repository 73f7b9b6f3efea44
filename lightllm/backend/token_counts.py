"""Which tokens a row has already, how often: for the rows with penalties, on the device.

A row lists its distinct tokens; nothing of the size of the vocabulary is kept. A token that is listed is subject to the
repetition penalty; its count is for frequency and presence.
"""

from __future__ import annotations

import numpy as np
import torch

_FIRST_CAPACITY = 256


class TokenCounts:
    """Lists grow to a common capacity; a row without penalties costs nothing but its place."""

    def __init__(self, max_rows: int, vocab_size: int, device: torch.device) -> None:
        self._vocab_size = vocab_size
        self._token_ids = torch.zeros((max_rows, 0), dtype=torch.int64, device=device)
        self._counts = torch.zeros((max_rows, 0), dtype=torch.float32, device=device)
        self._lengths = torch.zeros(max_rows, dtype=torch.int64, device=device)
        # What a list may have grown to, known without asking the device.
        self._bounds = np.zeros(max_rows, dtype=np.int64)

    def set(self, row: int, listed: np.ndarray, counted: np.ndarray) -> None:
        """Starts a row anew: `listed` are all tokens subject to penalties, `counted` those that count, both with
        repetitions; every counted token is listed."""
        token_ids = np.unique(listed)
        counts = np.zeros(len(token_ids), dtype=np.float32)
        np.add.at(counts, np.searchsorted(token_ids, counted), 1.0)
        self._reserve(len(token_ids))
        device = self._counts.device
        self._token_ids[row, : len(token_ids)] = torch.from_numpy(token_ids.astype(np.int64)).to(device)
        self._counts[row, : len(token_ids)] = torch.from_numpy(counts).to(device)
        self._lengths[row] = len(token_ids)
        self._bounds[row] = len(token_ids)

    def clear(self, row: int) -> None:
        self._lengths[row] = 0
        self._bounds[row] = 0

    def listed(self, rows: np.ndarray) -> tuple[np.ndarray, torch.Tensor, torch.Tensor] | None:
        """Which of `rows` list any token, int64 indices [m]; their token ids int64 [m, C] and counts float32 [m, C].
        Places beyond a row's list repeat its first token. None if no row lists a token."""
        bounds = self._bounds[rows]
        some = bounds.nonzero()[0]
        if len(some) == 0:
            return None
        width = int(bounds.max())
        index = torch.from_numpy(rows[some]).to(self._counts.device)
        token_ids, counts = self._token_ids[index, :width], self._counts[index, :width]
        real = torch.arange(width, device=self._counts.device) < self._lengths[index, None]
        return some, torch.where(real, token_ids, token_ids[:, :1]), torch.where(real, counts, counts[:, :1])

    def add(self, rows: np.ndarray, token_ids: torch.Tensor) -> None:
        """Counts one new token for each row: rows int64 [n], token_ids int64 [n]."""
        self._reserve(int(self._bounds[rows].max()) + 1)
        self._bounds[rows] = np.minimum(self._bounds[rows] + 1, self._vocab_size)
        width = int(self._bounds[rows].max())
        index = torch.from_numpy(rows).to(self._counts.device)
        lengths = self._lengths[index]
        same = self._token_ids[index, :width] == token_ids[:, None]
        same &= torch.arange(width, device=self._counts.device) < lengths[:, None]
        known = same.any(1)
        place = torch.where(known, same.int().argmax(1), lengths)
        counts = self._counts[index, place]
        self._token_ids[index, place] = token_ids
        self._counts[index, place] = torch.where(known, counts + 1.0, 1.0)
        self._lengths[index] = lengths + (~known)

    def _reserve(self, length: int) -> None:
        capacity = self._counts.shape[1]
        if length <= capacity:
            return
        extra = min(max(_FIRST_CAPACITY, capacity, length - capacity), self._vocab_size - capacity)
        if extra > 0:
            self._token_ids = torch.nn.functional.pad(self._token_ids, (0, extra))
            self._counts = torch.nn.functional.pad(self._counts, (0, extra))
