"""The tokens that results have brought lately, by row: a round writes one array, and touches no request.

`Running.collect` moves them to their request.
"""

from __future__ import annotations

import numpy as np

KEPT = 256
"""Tokens of a row before they are moved. Moving costs no less for few; a round finds the cache line that the last one left."""


class RecentOutputs:
    def __init__(self, max_rows: int) -> None:
        self._tokens = np.zeros((max_rows, KEPT), dtype=np.int32)
        self._count = np.zeros(max_rows, dtype=np.int64)

    def append(self, rows: np.ndarray, tokens: np.ndarray) -> list[int]:
        """One token (int32 [n]) for each of `rows` (int64 [n], distinct); answers with the rows that have no more room."""
        count = self._count[rows]
        self._tokens[rows, count] = tokens
        self._count[rows] = count + 1
        return rows[count == KEPT - 1].tolist()

    def take(self, row: int) -> bytes:
        """Empties a row; its tokens in order, as int32."""
        count = self._count[row]
        if not count:
            return b""
        self._count[row] = 0
        return self._tokens[row, :count].tobytes()
