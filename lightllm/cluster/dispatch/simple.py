"""Policies that look at load alone, or not even at that. `lottery` and `shortest_queue` are FastChat's."""

from __future__ import annotations

import random
from collections.abc import Sequence

from lightllm.cluster.ask import Ask
from lightllm.cluster.dispatch.policy import Stateless, least
from lightllm.cluster.worker import Worker


class Lottery(Stateless):
    """Any, with a chance in proportion to its speed."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng

    def choose(self, workers: Sequence[Worker], ask: Ask) -> Worker:
        speeds = [worker.description.speed for worker in workers]
        return self._rng.choices(workers, weights=speeds)[0]


class ShortestQueue(Stateless):
    """The one with the fewest requests for its speed."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng

    def choose(self, workers: Sequence[Worker], ask: Ask) -> Worker:
        return least(workers, [worker.queue for worker in workers], self._rng)


class RoundRobin(Stateless):
    """One after the other, for each model on its own."""

    def __init__(self, rng: random.Random) -> None:
        self._turns: dict[str, int] = {}

    def choose(self, workers: Sequence[Worker], ask: Ask) -> Worker:
        turn = self._turns.get(ask.model, 0)
        self._turns[ask.model] = turn + 1
        return sorted(workers, key=lambda worker: worker.url)[turn % len(workers)]


class PowerOfTwo(Stateless):
    """The one of two random workers that has fewer requests for its speed."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng

    def choose(self, workers: Sequence[Worker], ask: Ask) -> Worker:
        pair = self._rng.sample(list(workers), min(2, len(workers)))
        return least(pair, [worker.queue for worker in pair], self._rng)


class LeastTokens(Stateless):
    """The one that has the fewest tokens to do: prompts to compute, and answers to give."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng

    def choose(self, workers: Sequence[Worker], ask: Ask) -> Worker:
        return least(workers, [worker.pending for worker in workers], self._rng)
