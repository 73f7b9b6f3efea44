"""Values of metrics in Prometheus text format."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector, CollectorRegistry

from lightllm.protocol.metrics import Metric

CONTENT_TYPE = CONTENT_TYPE_LATEST


def render(values: Iterable[tuple[Metric, Sequence[float]]]) -> bytes:
    """The exposition of metrics with their values, each as `metric_store.read_all` has it, in this order."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collector(values))
    return generate_latest(registry)


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
