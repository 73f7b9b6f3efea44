"""How long outputs are, learned from recent ones: the "past" of past-future admission.

The curve is S(x) = P(length > x). How much a request that has generated g tokens will still generate follows from
P(length > x | length > g) = S(x) / S(g). S is the product-limit estimate of survival analysis (Kaplan and Meier 1958),
S(x) = prod over lengths l <= x of (1 - ended(l) / at_risk(l)), in which each request counts for what is known of it:

- A request that ended at its own limit, or was aborted, says that its output would have been longer than that: it is at
  risk up to its length, and is no end. Short limits of some do not shorten the forecast of others.
- So does one that still runs, with what it has generated so far. Without them the curve would be that of the short ones
  whenever many begin together, for these end first.
- The window reaches back to some moment. A request that ran then is at risk only from the length that it had there on, or
  the running ones would count twice (once in every window that they pass).
"""

from __future__ import annotations

import numpy as np

WINDOW = 1000
"""Requests that left: the window begins when the first of them did."""
WARM_START = 32
"""Requests that have left: while there are fewer, the missing ones count as outputs that never end, so that forecasts lean to
max_new_tokens."""
REFRESH_ROUNDS = 8
"""Rounds between two computations of the curve, at least."""


class OutputLengths:
    """A sliding window of output lengths, and the curve that it makes."""

    def __init__(self, window: int = WINDOW, warm_start: int = WARM_START) -> None:
        self._left = np.zeros((window, 3), dtype=np.int64)
        """A ring: length, ended, round in which it left."""
        self._added = 0
        self._window = window
        self._warm_start = min(warm_start, window)
        self._begin: int | None = None
        """The round in which the window begins; None: with the first request of all."""
        self._made = -REFRESH_ROUNDS
        self._stale = False
        self._survival = np.ones(1)
        """S at 0, 1, 2, ... up to the last length at which it falls."""

    def __len__(self) -> int:
        return min(self._added, self._window)

    def add(self, length: int, ended: bool, round_: int = 0) -> None:
        """An output of `length` tokens left in round `round_`; not `ended`: it was cut off, by its limit or its client."""
        if length > 0:
            place = self._left[self._added % self._window]
            if self._added >= self._window:
                self._begin = int(place[2])
            place[:] = length, ended, round_
            self._added += 1
            self._stale = True

    def update(self, running: np.ndarray, round_: int) -> None:
        """Makes the curve anew if it is time; int [n] `running`: what those that run in `round_` have generated."""
        if self._added and (self._stale or len(running)) and round_ - self._made >= REFRESH_ROUNDS:
            self.refresh(running, round_)

    def refresh(self, running: np.ndarray, round_: int) -> None:
        """Makes the curve now."""
        self._stale = False
        self._made = round_
        left = self._left[: len(self)]
        ended = np.bincount(left[left[:, 1] == 1, 0], minlength=1)
        last = np.concatenate([left[:, 0], running])
        at_risk = _at_least(last, len(ended)) + max(0, self._warm_start - len(left))
        if self._begin is not None:
            # A request makes one token a round at most, so that this is what it had when the window began, or less.
            since = np.concatenate([left[:, 2], np.full(len(running), round_)]) - self._begin + 1
            at_risk -= _at_least(last - since, len(ended))
        at_risk = np.maximum(np.maximum(at_risk, ended), 1)
        self._survival = np.cumprod(1.0 - ended / at_risk)

    def survive(self, generated: np.ndarray, more: int | np.ndarray) -> np.ndarray:
        """float64 [n]: the probability that an output is longer than generated + more, given that it is longer than
        generated; 1 where nothing is known."""
        alive = self._survival.take(generated + more, mode="clip")
        so_far = self._survival.take(generated, mode="clip")
        if self._survival[-1]:
            return alive / so_far
        # No output seen went on beyond the last length: of one that does nothing is known.
        beyond = so_far == 0.0
        alive /= so_far + beyond
        if beyond.any():
            np.copyto(alive, 1.0, where=beyond)
        return alive

    @property
    def learned(self) -> bool:
        """Whether enough requests have left that no missing one counts as endless."""
        return len(self) >= self._warm_start

    def moments(self, limit: int) -> tuple[float, float]:
        """(mean length, mean of length squared / 2) of outputs of at most `limit` tokens. Those that are longer than all that
        ended so far count as running to the limit."""
        known = self._survival[:limit]
        seen, beyond = len(known), float(self._survival[-1])
        mean = float(known.sum()) + beyond * (limit - seen)
        area = float(known @ np.arange(seen)) + beyond * (limit - seen) * (limit + seen - 1) / 2
        return max(mean, 1.0), area


def _at_least(values: np.ndarray, bounds: int) -> np.ndarray:
    """int64 [bounds]: how many of `values` are no less than 0, 1, 2, ..."""
    counts = np.bincount(np.clip(values, 0, bounds - 1), minlength=bounds)
    return np.cumsum(counts[::-1])[::-1]
