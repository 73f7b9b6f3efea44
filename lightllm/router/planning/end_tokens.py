"""Which tokens may end a running request: what most rounds need to know of their tokens."""

from __future__ import annotations

from collections import Counter

import numpy as np

FEW = 16
"""Ids that are looked for one by one, which for so few is faster than `np.isin`."""


class EndTokens:
    """The union of the end tokens of several requests, most of which have the same."""

    def __init__(self) -> None:
        self._sets: Counter[frozenset[int]] = Counter()
        self._union: list[int] | None = None

    def add(self, ids: frozenset[int]) -> None:
        self._sets[ids] += 1
        if self._sets[ids] == 1:
            self._union = None

    def remove(self, ids: frozenset[int]) -> None:
        self._sets[ids] -= 1
        if not self._sets[ids]:
            del self._sets[ids]
            self._union = None

    def match(self, tokens: np.ndarray) -> list[int]:
        """Positions in `tokens` (int32 [n]) of those that end some request, not necessarily the one they are for."""
        if self._union is None:
            self._union = sorted(frozenset().union(*self._sets))
        if len(self._union) > FEW:
            return np.isin(tokens, self._union).nonzero()[0].tolist()
        if not self._union:
            return []
        found = tokens == self._union[0]
        for stop_id in self._union[1:]:
            found |= tokens == stop_id
        return found.nonzero()[0].tolist()
