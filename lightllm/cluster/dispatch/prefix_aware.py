"""The default: a request goes where it costs least, and what a worker has cached costs nothing.

    cost = 2 * prompt tokens that it would have to compute + tokens that wait there already

Computing a prefix anew counts twice: it also takes memory in which another prefix was. Only workers whose load is within a slack
of the least one are looked at; so a popular prefix moves to a second worker when its first one has much more to do, and no
worker is ever preferred for having little in its cache. (Weights 1, 2 and 4 and slacks of 4,096 to 32,768 were compared in the
simulator: docs/dispatch.md.)
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

from lightllm.cluster.ask import BLOCK_TOKENS, Ask
from lightllm.cluster.dispatch.policy import least
from lightllm.cluster.dispatch.prefix_index import PrefixIndex
from lightllm.cluster.worker import Worker
from lightllm.protocol.kv_events import ToldPrompt

MISS_WEIGHT = 2.0
"""What a prompt token that is not cached costs, in tokens that wait."""
SLACK_TOKENS = 8192
"""How much more than the least a worker may have to do and still be chosen for its cache."""


def cheapest(
    workers: Sequence[Worker], ask: Ask, depths: Mapping[str, int], slack: float, rng: random.Random
) -> Worker:
    """depths: leading blocks of the prompt that workers have, by their URLs."""
    pending = [worker.pending for worker in workers]
    bound = min(pending) + slack
    near, waits = workers, pending
    if max(pending) > bound:
        near = [worker for worker in workers if worker.pending <= bound]
        waits = [tokens for tokens in pending if tokens <= bound]
    whole = MISS_WEIGHT * ask.prompt_tokens
    saved = MISS_WEIGHT * BLOCK_TOKENS
    depth = depths.get
    cost = [
        tokens + (whole - saved * depth(worker.url, 0)) / worker.description.speed
        for worker, tokens in zip(near, waits, strict=True)
    ]
    return least(near, cost, rng)


class PrefixAware:
    asks_prompts = False

    def __init__(self, rng: random.Random, slack: float = SLACK_TOKENS) -> None:
        self._rng = rng
        self._slack = slack
        self._index = PrefixIndex()

    def choose(self, workers: Sequence[Worker], ask: Ask) -> Worker:
        return cheapest(workers, ask, self.depths(ask), self._slack, self._rng)

    def depths(self, ask: Ask) -> dict[str, int]:
        """Leading blocks that each worker has; those that have none are left out."""
        return self._index.match(ask.blocks)

    def cached_tokens(self, worker: Worker, ask: Ask) -> int:
        return BLOCK_TOKENS * self._index.depth(worker.url, ask.blocks)

    def sent(self, worker: Worker, ask: Ask) -> None:
        self._index.insert(worker.url, ask.blocks, worker.description.kv_tokens)

    def learn(self, worker: Worker, ask: Ask, told: ToldPrompt) -> None:
        pass

    def gone(self, worker: Worker) -> None:
        self._index.forget(worker.url)
