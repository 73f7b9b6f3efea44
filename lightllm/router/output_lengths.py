"""How long outputs are, learned from those that ended recently: the "past" of past-future admission.

The lengths of the last requests make a survival curve S(x) = P(length > x). What a request that has generated g tokens
will still say is drawn from P(length > x | length > g) = S(x) / S(g). A request that ended at its own limit, or was
aborted, says only that its output would have been longer than that: it counts among those "at risk" up to its length and
not as an end (the Kaplan-Meier estimate), so that short limits of some do not shorten the forecast of others.
"""

from __future__ import annotations

from collections import deque

import numpy as np

WINDOW = 1000
"""Finished requests that the curve is made of."""
WARM_START = 32
"""While fewer have ended, the missing ones count as outputs that never end: forecasts lean to max_new_tokens."""

_GOLDEN = 0x9E3779B97F4A7C15
"""2^64 / golden ratio: multiples of it modulo 2^64 spread evenly, however many are taken."""
_MASK = (1 << 64) - 1


class OutputLengths:
    """A sliding window of output lengths, and draws from it."""

    def __init__(self, window: int = WINDOW, warm_start: int = WARM_START) -> None:
        self._recent: deque[tuple[int, bool]] = deque(maxlen=window)
        self._warm_start = min(warm_start, window)
        self._stale = False
        self._lengths = np.zeros(0, dtype=np.int64)
        """Sorted."""
        self._survival = np.ones(1)
        """[lengths + 1]: S before the first, then S at each."""

    def __len__(self) -> int:
        return len(self._recent)

    def add(self, length: int, ended: bool) -> None:
        """An output of `length` tokens; not `ended`: it was cut off, by its limit or by its client."""
        if length > 0:
            self._recent.append((length, ended))
            self._stale = True

    def draw(self, generated: np.ndarray, limit: np.ndarray, uniform: np.ndarray) -> np.ndarray:
        """int64 [n]: tokens still to come after `generated`, at most limit - generated; `uniform` float64 [n] in (0, 1)
        picks them. At least one as long as the limit allows; all of them where nothing is known."""
        self._refresh()
        so_far = self._survival[np.searchsorted(self._lengths, generated, side="right")]
        # The first length whose S is down to the target; behind the last one, or with nobody left to learn from, the limit.
        at = np.searchsorted(-self._survival, -uniform * so_far, side="left")
        known = (at < len(self._survival)) & (so_far > 0)
        length = self._lengths[np.where(known, at - 1, 0)] if len(self._lengths) else limit
        return np.minimum(np.where(known, length, limit), limit) - generated

    def _refresh(self) -> None:
        if not self._stale:
            return
        self._stale = False
        lengths = np.array([length for length, _ in self._recent], dtype=np.int64)
        ended = np.array([ended for _, ended in self._recent], dtype=bool)
        order = np.lexsort((~ended, lengths))  # at equal lengths the ends come first
        total = max(len(lengths), self._warm_start)
        at_risk = total - np.arange(len(lengths))
        self._lengths = lengths[order]
        self._survival = np.concatenate([[1.0], np.cumprod(1.0 - ended[order] / at_risk)])


def spread(seed: int, round_: int, first: int, count: int) -> np.ndarray:
    """float64 [count] in (0, 1): numbers `first`, first + 1, ... of a sequence that depends on (seed, round) alone.

    Each is uniform over the rounds; together they cover the interval evenly, so that the sum of many draws hardly varies
    from round to round. With independent ones a candidate that tries every round would enter on a lucky one.
    """
    start = _mix(_mix(seed) ^ round_)
    steps = np.arange(first, first + count, dtype=np.uint64) * np.uint64(_GOLDEN) + np.uint64(start)
    return ((steps >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52


def _mix(value: int) -> int:
    """A bijection of 64 bits in which every bit depends on every other."""
    value = (value + _GOLDEN) & _MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)
