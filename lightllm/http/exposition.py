"""All metrics of a server as Prometheus' text: for /metrics, and for a push gateway."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector, CollectorRegistry

from lightllm.http.metric_store import read_all
from lightllm.ipc.runtime_dir import RuntimeDir
from lightllm.ipc.snapshot import Snapshot
from lightllm.protocol.metrics import HEALTHY, HTTP_METRICS, SNAPSHOT_METRICS, START_TIME, Metric


def exposition(runtime: RuntimeDir, snapshot: Snapshot, healthy: bool) -> bytes:
    """As `collect`, as text."""
    return generate_latest(collect(runtime, snapshot, healthy))


def collect(runtime: RuntimeDir, snapshot: Snapshot, healthy: bool) -> CollectorRegistry:
    """The sums over the Http Servers, what the Router says, and how the server is; all as it is now."""
    sums = read_all(runtime.metrics_dir, HTTP_METRICS)
    registry = CollectorRegistry(auto_describe=False)
    registry.register(
        _Collector(
            [
                *((metric, sums[metric.name]) for metric in HTTP_METRICS),
                *((metric, [float(getattr(snapshot, field))]) for metric, field in SNAPSHOT_METRICS),
                (HEALTHY, [float(healthy)]),
                (START_TIME, [runtime.created]),
            ]
        )
    )
    return registry


class _Collector(Collector):
    def __init__(self, values: Iterable[tuple[Metric, Sequence[float]]]) -> None:
        self._values = values

    def collect(self) -> Iterator[Any]:
        return (_family(metric, values) for metric, values in self._values)


def _family(metric: Metric, values: Sequence[float]) -> Any:
    if metric.kind == "counter":
        return CounterMetricFamily(metric.name, metric.help, value=values[0])
    if metric.kind == "gauge":
        return GaugeMetricFamily(metric.name, metric.help, value=values[0])
    bounds = [*map(str, metric.buckets), "+Inf"]
    buckets = list(zip(bounds, accumulate(values[1:]), strict=True))
    return HistogramMetricFamily(metric.name, metric.help, buckets=buckets, sum_value=values[0])
