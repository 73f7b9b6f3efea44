"""All metrics in Prometheus' words, with the model's name as a label: for `/metrics`, and for a push gateway."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector, CollectorRegistry

from lightllm.http.metric_store import read_all
from lightllm.ipc.metric_history import read_latest
from lightllm.ipc.runtime_dir import RuntimeDir
from lightllm.ipc.snapshot import Snapshot
from lightllm.protocol.metric_aliases import ALIASES, VLLM, Alias, Values
from lightllm.protocol.metrics import HEALTHY, HTTP_METRICS, OUTPUT_RATE, SNAPSHOT_METRICS, START_TIME, Metric


def exposition(runtime: RuntimeDir, snapshot: Snapshot, healthy: bool, model_name: str) -> bytes:
    """As `collect`, as text."""
    return generate_latest(collect(runtime, snapshot, healthy, model_name))


def collect(runtime: RuntimeDir, snapshot: Snapshot, healthy: bool, model_name: str) -> CollectorRegistry:
    """The sums over the Http Servers, what the Router says, and how the server is; all as it is now."""
    latest = read_latest(runtime.history_file)
    values: dict[str, Sequence[float]] = {
        **read_all(runtime.metrics_dir, HTTP_METRICS),
        **{metric.name: [float(getattr(snapshot, field))] for metric, field in SNAPSHOT_METRICS},
        OUTPUT_RATE.name: [latest.output_tokens_per_second if latest else 0.0],
        HEALTHY.name: [float(healthy)],
        START_TIME.name: [runtime.created],
    }
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collector(values, model_name))
    return registry


class _Collector(Collector):
    def __init__(self, values: Values, model_name: str) -> None:
        self._values = values
        self._model = {"model_name": model_name}

    def collect(self) -> Iterator[Any]:
        snapshot = (metric for metric, _ in SNAPSHOT_METRICS)
        for metric in (*HTTP_METRICS, *snapshot, OUTPUT_RATE, HEALTHY):
            yield _family(metric, self._values[metric.name], self._model)
        yield _family(START_TIME, self._values[START_TIME.name], {})
        for alias in ALIASES:
            # vLLM's own have the number of the engine, too
            labels = self._model | ({"engine": "0"} if alias in VLLM else {})
            labels |= {name: value(self._values) for name, value in alias.labels}
            yield _family(alias, alias.value(self._values), labels)


def _family(metric: Metric | Alias, values: Sequence[float], labels: dict[str, str]) -> Any:
    names, of = list(labels), list(labels.values())
    if metric.kind == "histogram":
        bounds = [*map(str, metric.buckets), "+Inf"]
        buckets = list(zip(bounds, accumulate(values[1:]), strict=True))
        histogram = HistogramMetricFamily(metric.name, metric.help, labels=names)
        histogram.add_metric(of, buckets, values[0])
        return histogram
    kind = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
    if metric.label:
        family = kind(metric.name, metric.help, labels=[metric.label, *names])
        for value, count in zip(metric.values, values, strict=True):
            family.add_metric([value, *of], count)
        return family
    family = kind(metric.name, metric.help, labels=names)
    family.add_metric(of, values[0])
    return family
