"""Which tokens a row has already, how often: for the rows with penalties, on the device.

A row lists its distinct tokens; nothing of the size of the vocabulary is kept. A token that is listed is subject to the
repetition penalty; its count is for frequency and presence.
"""

from __future__ import annotations

import numpy as np
import torch

from lightllm.backend.device import Device, upload

_FIRST_CAPACITY = 256


class TokenCounts:
    """Lists grow to a common capacity; a row without penalties costs nothing but its place."""

    def __init__(self, max_rows: int, vocab_size: int, device: Device) -> None:
        self._vocab_size = vocab_size
        self._device = device
        where = device.torch_device
        self._token_ids = torch.zeros((max_rows, 0), dtype=torch.int64, device=where)
        self._counts = torch.zeros((max_rows, 0), dtype=torch.float32, device=where)
        self._lengths = torch.zeros(max_rows, dtype=torch.int64, device=where)
        # What a list may have grown to, known without asking the device.
        self._bounds = np.zeros(max_rows, dtype=np.int64)

    def set(self, row: int, listed: np.ndarray, counted: np.ndarray) -> None:
        """Starts a row anew: `listed` are all tokens subject to penalties, `counted` those that count, both with
        repetitions; every counted token is listed."""
        token_ids = np.unique(listed)
        counts = np.zeros(len(token_ids), dtype=np.float32)
        np.add.at(counts, np.searchsorted(token_ids, counted), 1.0)
        self._reserve(len(token_ids))
        if len(token_ids):
            ids_on_device, counts_on_device = upload(self._device, token_ids.astype(np.int64), counts)
            self._token_ids[row, : len(token_ids)] = ids_on_device
            self._counts[row, : len(token_ids)] = counts_on_device
        self._lengths[row : row + 1].fill_(len(token_ids))
        self._bounds[row] = len(token_ids)

    def clear(self, row: int) -> None:
        self._lengths[row : row + 1].fill_(0)
        self._bounds[row] = 0

    def lists_any(self, rows: np.ndarray) -> np.ndarray:
        """bool [m]: which of `rows` list any token."""
        return self._bounds[rows] > 0

    def listed(self, rows: np.ndarray, index: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Token ids int64 [m, C] and counts float32 [m, C] of rows int64 [m] (also on the device: index), each of which
        lists a token. Places beyond a row's list repeat its first token."""
        width = int(self._bounds[rows].max())
        token_ids, counts = self._token_ids[index, :width], self._counts[index, :width]
        real = torch.arange(width, device=index.device) < self._lengths[index, None]
        return torch.where(real, token_ids, token_ids[:, :1]), torch.where(real, counts, counts[:, :1])

    def add(self, rows: np.ndarray, index: torch.Tensor, token_ids: torch.Tensor) -> None:
        """Counts one new token for each row: rows int64 [n] on the host and on the device, token_ids int64 [n]."""
        self._reserve(int(self._bounds[rows].max()) + 1)
        self._bounds[rows] = np.minimum(self._bounds[rows] + 1, self._vocab_size)
        width = int(self._bounds[rows].max())
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
