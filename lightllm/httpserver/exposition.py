"""`GET /metrics`: the workers' sums and the Router's snapshot in Prometheus text format."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector, CollectorRegistry

from lightllm.httpserver.metric_store import read_all
from lightllm.ipc.snapshot import Snapshot
from lightllm.protocol.metrics import HTTP_METRICS, SNAPSHOT_METRICS, Metric

CONTENT_TYPE = CONTENT_TYPE_LATEST


def render(folder: Path, snapshot: Snapshot) -> bytes:
    """The exposition of everything now."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collector(folder, snapshot))
    return generate_latest(registry)


class _Collector(Collector):
    def __init__(self, folder: Path, snapshot: Snapshot) -> None:
        self._folder = folder
        self._snapshot = snapshot

    def collect(self) -> Iterator[Any]:
        values = read_all(self._folder, HTTP_METRICS)
        for metric in HTTP_METRICS:
            yield _family(metric, values[metric.name])
        for metric, field in SNAPSHOT_METRICS:
            yield _family(metric, [float(getattr(self._snapshot, field))])


def _family(metric: Metric, values: list[float]) -> Any:
    if metric.kind == "counter":
        return CounterMetricFamily(metric.name, metric.help, value=values[0])
    if metric.kind == "gauge":
        return GaugeMetricFamily(metric.name, metric.help, value=values[0])
    bounds = [*map(str, metric.buckets), "+Inf"]
    buckets = list(zip(bounds, accumulate(values[1:]), strict=True))
    return HistogramMetricFamily(metric.name, metric.help, buckets=buckets, sum_value=values[0])
