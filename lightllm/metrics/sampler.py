"""What happened in the last second, from counters that only ever grow."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from pathlib import Path

from lightllm.http.metric_store import read_all
from lightllm.ipc.snapshot import Snapshot
from lightllm.protocol.metrics import (
    FIRST_TOKEN_SECONDS,
    HTTP_METRICS,
    INTER_TOKEN_SECONDS,
    REQUEST_FAILURE,
    REQUEST_SUCCESS,
)
from lightllm.protocol.samples import Sample

_QUANTILE_SAMPLES = 10
"""Samples back to which quantiles reach."""


class Sampler:
    def __init__(self, metrics_dir: Path) -> None:
        """metrics_dir: where the Http Servers count."""
        self._folder = metrics_dir
        self._counts: deque[dict[str, list[float]]] = deque(maxlen=_QUANTILE_SAMPLES + 1)
        """Of the Http Servers; the latest is the last."""
        self._snapshot = Snapshot()
        self._taken = 0.0

    def sample(self, snapshot: Snapshot, healthy: bool, now: float, wall: float) -> Sample | None:
        """None the first time: there is nothing to compare with. now: `time.monotonic()`; wall: `time.time()`."""
        counts, before = read_all(self._folder, HTTP_METRICS), self._snapshot
        first, elapsed = not self._counts, max(now - self._taken, 1e-3)
        self._counts.append(counts)
        self._snapshot, self._taken = snapshot, now
        if first:
            return None
        former = self._counts[-2]

        def rate(name: str) -> float:
            return (counts[name][0] - former[name][0]) / elapsed

        ttft, itl = self._latest(FIRST_TOKEN_SECONDS.name), self._latest(INTER_TOKEN_SECONDS.name)
        return Sample(
            time=wall,
            input_tokens_per_second=(snapshot.prompt_tokens - before.prompt_tokens) / elapsed,
            output_tokens_per_second=(snapshot.output_tokens - before.output_tokens) / elapsed,
            requests_per_second=rate(REQUEST_SUCCESS.name),
            failures_per_second=rate(REQUEST_FAILURE.name),
            running=snapshot.running,
            waiting=snapshot.waiting,
            paused=snapshot.paused,
            slots_total=snapshot.slots_total,
            slots_used=snapshot.slots_used,
            slots_cached=snapshot.slots_cached,
            ttft_p50=quantile(FIRST_TOKEN_SECONDS.buckets, ttft, 0.5),
            ttft_p99=quantile(FIRST_TOKEN_SECONDS.buckets, ttft, 0.99),
            itl_p50=quantile(INTER_TOKEN_SECONDS.buckets, itl, 0.5),
            itl_p99=quantile(INTER_TOKEN_SECONDS.buckets, itl, 0.99),
            healthy=float(healthy),
        )

    def _latest(self, name: str) -> list[float]:
        """A histogram's counts, of what was observed lately."""
        newest, oldest = self._counts[-1][name], self._counts[0][name]
        return [new - old for new, old in zip(newest[1:], oldest[1:], strict=True)]


def quantile(bounds: Sequence[float], counts: Sequence[float], q: float) -> float:
    """A quantile of a histogram, as Prometheus estimates it: evenly spread within a bucket; the highest bound for what is above
    it. bounds: upper ones of the buckets; counts: of each bucket alone, the last for what is above. NaN where all are zero."""
    total = sum(counts)
    if total <= 0:
        return math.nan
    rank, below, low = q * total, 0.0, 0.0
    for bound, count in zip(bounds, counts, strict=False):
        if count and below + count >= rank:
            return low + (bound - low) * (rank - below) / count
        below += count
        low = bound
    return bounds[-1]
