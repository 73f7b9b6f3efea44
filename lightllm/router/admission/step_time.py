"""How long a round takes: learned from the rounds that ran, to predict the next ones.

    seconds = w0 + sum over bends k of w_k * max(0, tokens - bend_k) + w_held * held,   all w >= 0

A device takes the same time for few tokens as for one (it reads all weights anyway) and is proportional for many, so the
curve is convex in the tokens; attention adds time for every token held. The weights minimise the squared relative error
over recent rounds, by coordinate descent on the normal equations: exact enough, a few microseconds a round, and the same
rounds give the same weights.
"""

from __future__ import annotations

import math
from bisect import bisect_right

import numpy as np

BENDS = (0, 32, 128, 512, 2048)
"""Tokens of a round where its time may grow faster."""
_TOKENS, _HELD = 512.0, 65536.0
"""Units that keep the equations well conditioned."""
MEMORY = 0.998
"""Factor by which the weight of a round falls with each later one: about the last 500 count."""
EVERY = 32
"""Rounds between two solutions of the equations."""
SWEEPS = 8
"""Passes of coordinate descent in each solution."""


class StepTimeModel:
    """Rounds without a time (a backend that reports none) are ignored."""

    def __init__(self) -> None:
        size = len(BENDS) + 2
        self._products = np.zeros((size, size))
        self._targets = np.zeros(size)
        self._weights = [0.0] * size
        self._rounds = 0
        self._largest = 0.0
        self._new: list[tuple[int, int, float]] = []
        """Rounds (tokens, held, seconds) that are not in the equations yet."""

    @property
    def known(self) -> bool:
        """Whether there is anything to predict from."""
        return self._rounds > 0

    def record(self, tokens: int, held: int, seconds: float) -> None:
        """A round computed `tokens` while the requests in it held `held` tokens in all."""
        if seconds <= 0.0:
            return
        self._new.append((tokens, held, seconds))
        self._largest = max(self._largest * MEMORY, float(tokens))
        self._rounds += 1
        if self._rounds % EVERY == 0 or self._rounds < EVERY:
            self._take_in()
            self._solve()

    def _take_in(self) -> None:
        """The new rounds join the equations, those before them count less."""
        tokens, held, seconds = np.array(self._new).T
        self._new.clear()
        features = [
            np.ones_like(tokens),
            *(np.maximum(0.0, tokens - bend) / _TOKENS for bend in BENDS),
            held / _HELD,
        ]
        scaled = np.array(features) / seconds
        weights = MEMORY ** np.arange(len(tokens))[::-1]
        past = MEMORY ** len(tokens)
        self._products = self._products * past + (scaled * weights) @ scaled.T
        self._targets = self._targets * past + scaled @ weights

    def seconds(self, tokens: float, held: float) -> float:
        """The time of a round, 0 while nothing is known."""
        weights, result = self._weights, self._weights[0] + self._weights[-1] * held / _HELD
        for i, bend in enumerate(BENDS):
            if tokens <= bend:
                break
            result += weights[i + 1] * (tokens - bend) / _TOKENS
        return result

    def most_tokens(self, held: float, seconds: float, limit: int) -> int:
        """The most tokens, up to `limit`, of a round that takes no longer than `seconds`; at least 0. Nothing is believed
        beyond twice of what was seen, so that a first large round is approached in steps."""
        if not self.known:
            return limit
        most = int(min(limit, max(2 * self._largest, BENDS[1])))
        fitting = bisect_right(range(most + 1), seconds, key=lambda tokens: self.seconds(tokens, held))
        return max(0, fitting - 1)

    def most_held(self, tokens: float, seconds: float) -> float:
        """The most tokens that the requests of such a round may hold; infinite where they seem to cost nothing."""
        left = seconds - self.seconds(tokens, 0.0)
        if left <= 0.0:
            return 0.0
        return left / self._weights[-1] * _HELD if self._weights[-1] > 0.0 else math.inf

    def _solve(self) -> None:
        products, targets, weights = self._products.tolist(), self._targets.tolist(), self._weights
        for _ in range(SWEEPS):
            for i, row in enumerate(products):
                if row[i] > 0.0:
                    error = targets[i] - sum(p * w for p, w in zip(row, weights, strict=True))
                    weights[i] = max(0.0, weights[i] + error / row[i])
