"""Counters and histograms of one Http Server worker in a memory-mapped file, and their sum over all workers.

An update is one addition in shared memory (well under a microsecond), so it may happen once per request and round.
A worker that is restarted opens its file again and counts on: the sums never fall.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from pathlib import Path

from lightllm.ipc.mapped_file import map_file
from lightllm.protocol.metrics import Metric

_WIDTH = 8


class MetricStore:
    """The writing end. One process writes a file; any process may read it. Raises `StartupError` when there is no room."""

    def __init__(self, path: Path, metrics: Sequence[Metric]) -> None:
        self._places, count = _layout(metrics)
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._map = map_file(path, count * _WIDTH)
        self._values = memoryview(self._map).cast("d")

    def add(self, metric: Metric, amount: float = 1.0, value: str = "") -> None:
        """Counter. value: of its label, if it has one."""
        place = self._places[metric.name] + (metric.values.index(value) if metric.label else 0)
        self._values[place] += amount

    def set(self, metric: Metric, value: float) -> None:
        """Gauge."""
        self._values[self._places[metric.name]] = value

    def observe(self, metric: Metric, value: float) -> None:
        """Histogram. Place 0 is the sum, then one count a bucket, the last for +Inf."""
        place = self._places[metric.name]
        self._values[place] += value
        self._values[place + 1 + bisect_left(metric.buckets, value)] += 1.0

    def close(self) -> None:
        self._values.release()
        self._map.close()


def read_all(folder: Path, metrics: Sequence[Metric]) -> dict[str, list[float]]:
    """Values of every metric over all files of `folder`: counters and histograms summed, gauges at their maximum."""
    places, count = _layout(metrics)
    total = [0.0] * count
    gauges = {places[metric.name] for metric in metrics if metric.kind == "gauge"}
    for path in sorted(folder.glob("http-*")):
        data = path.read_bytes()
        if len(data) != count * _WIDTH:
            continue  # of another version
        for index, value in enumerate(memoryview(data).cast("d")):
            total[index] = max(total[index], value) if index in gauges else total[index] + value
    return {
        metric.name: total[places[metric.name] : places[metric.name] + _size(metric)] for metric in metrics
    }


def _size(metric: Metric) -> int:
    return len(metric.buckets) + 2 if metric.kind == "histogram" else max(1, len(metric.values))


def _layout(metrics: Sequence[Metric]) -> tuple[dict[str, int], int]:
    places, position = {}, 0
    for metric in metrics:
        places[metric.name] = position
        position += _size(metric)
    return places, position
