"""What every policy is."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Protocol

from lightllm.cluster.ask import Ask
from lightllm.cluster.worker import Worker
from lightllm.protocol.kv_events import ToldPrompt


class Policy(Protocol):
    asks_prompts: bool
    """Whether it wants to know the blocks of prompts (`learn`)."""

    def choose(self, workers: Sequence[Worker], ask: Ask) -> Worker:
        """One of `workers`, of which there is at least one."""

    def cached_tokens(self, worker: Worker, ask: Ask) -> int:
        """Of the prompt, what the worker is thought to have in its prefix cache."""

    def sent(self, worker: Worker, ask: Ask) -> None:
        """The request goes to this worker."""

    def learn(self, worker: Worker, ask: Ask, told: ToldPrompt) -> None:
        """The worker has begun its answer, and tells the blocks of the prompt."""

    def gone(self, worker: Worker) -> None:
        """Its memory is lost."""


class Stateless:
    """A policy that remembers nothing of prompts."""

    asks_prompts = False

    def learn(self, worker: Worker, ask: Ask, told: ToldPrompt) -> None:
        pass

    def cached_tokens(self, worker: Worker, ask: Ask) -> int:
        return 0

    def sent(self, worker: Worker, ask: Ask) -> None:
        pass

    def gone(self, worker: Worker) -> None:
        pass


def least(workers: Sequence[Worker], cost: Sequence[float], rng: random.Random) -> Worker:
    """The cheapest; of equals the one that was sent fewest requests, then any: never always the first."""
    best = min(cost)
    ties = [workers[cost.index(best)]]
    if cost.count(best) > 1:
        ties = [worker for worker, value in zip(workers, cost) if value <= best]
    fewest = min(worker.sent for worker in ties)
    return rng.choice([worker for worker in ties if worker.sent == fewest])
