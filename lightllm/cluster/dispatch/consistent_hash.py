"""The same session, or the same beginning of a prompt, goes to the same worker, with as few moves as can be when workers come and
go: each worker has points on a ring, and a request goes to the first point behind its own. A worker with far more than its
share passes requests on to the next (consistent hashing with bounded loads; Mirrokni, Thorup, Zadimoghaddam 2018)."""

from __future__ import annotations

import bisect
import random
from collections.abc import Sequence

from lightllm.cluster.ask import Ask, hash_point
from lightllm.cluster.dispatch.policy import Stateless, least
from lightllm.cluster.worker import Worker

_POINTS = 160
"""Of a worker of speed 1, on the ring."""
_MOST_POINTS = 4096
LOAD_FACTOR = 1.25
"""A worker takes no more than so many times the mean number of requests."""
_PREFIX_BLOCKS = 4


class ConsistentHash(Stateless):
    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._rings: dict[frozenset[tuple[str, float]], tuple[list[int], list[str]]] = {}

    def choose(self, workers: Sequence[Worker], ask: Ask) -> Worker:
        if not ask.session and not ask.blocks:
            return least(workers, [worker.queue for worker in workers], self._rng)
        key = f"session {ask.session}" if ask.session else f"prefix {ask.blocks[:_PREFIX_BLOCKS][-1]}"
        points, urls = self._ring(workers)
        place = bisect.bisect(points, hash_point(key))
        by_url = {worker.url: worker for worker in workers}
        speeds = sum(worker.description.speed for worker in workers)
        bound = LOAD_FACTOR * (sum(worker.requests for worker in workers) + 1) / speeds
        for step in range(len(points)):
            worker = by_url[urls[(place + step) % len(points)]]
            if (worker.requests + 1) / worker.description.speed <= max(bound, 1 / worker.description.speed):
                return worker
        return least(workers, [worker.queue for worker in workers], self._rng)

    def _ring(self, workers: Sequence[Worker]) -> tuple[list[int], list[str]]:
        key = frozenset((worker.url, worker.description.speed) for worker in workers)
        ring = self._rings.get(key)
        if ring is None:
            points = sorted(
                (hash_point(f"{worker.url} {number}"), worker.url)
                for worker in workers
                for number in range(min(_MOST_POINTS, max(1, round(_POINTS * worker.description.speed))))
            )
            ring = [point for point, _ in points], [url for _, url in points]
            if len(self._rings) >= 64:  # workers have come and gone
                self._rings.clear()
            self._rings[key] = ring
        return ring
