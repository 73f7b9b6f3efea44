"""The controller's metrics, in Prometheus' words."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector

from lightllm.cluster.registry import Registry
from lightllm.cluster.worker import State

_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class ControllerMetrics:
    def __init__(self, registry: Registry) -> None:
        self._collected = CollectorRegistry(auto_describe=False)
        self._collected.register(_Workers(registry))
        self.requests = Counter(
            "lightllm_controller_requests", "Requests by worker and status of the answer.", ["worker", "status"],
            registry=self._collected,
        )  # fmt: skip
        self.retries = Counter(
            "lightllm_controller_retries", "Requests that were sent to another worker, by the one that failed.", ["worker"],
            registry=self._collected,
        )  # fmt: skip
        self.broken = Counter(
            "lightllm_controller_broken_streams", "Answers that a worker broke off after they had begun.", ["worker"],
            registry=self._collected,
        )  # fmt: skip
        self.rejected = Counter(
            "lightllm_controller_rejected", "Requests that no worker was found for, by error code.", ["reason"],
            registry=self._collected,
        )  # fmt: skip
        self.waited = Histogram(
            "lightllm_controller_waited_seconds", "What requests waited in the controller that found all workers full.",
            buckets=_BUCKETS, registry=self._collected,
        )  # fmt: skip
        self.waiting: Callable[[], int] = lambda: 0
        Gauge(
            "lightllm_controller_waiting", "Requests that wait in the controller.", registry=self._collected
        ).set_function(lambda: self.waiting())
        self.first_byte = Histogram(
            "lightllm_controller_first_byte_seconds", "From the whole request to the first part of the answer.",
            buckets=_BUCKETS, registry=self._collected,
        )  # fmt: skip

    def exposition(self) -> bytes:
        return generate_latest(self._collected)


class _Workers(Collector):
    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    def collect(self) -> Iterator[Metric]:
        state = GaugeMetricFamily("lightllm_controller_workers", "Workers by state.", labels=["state"])
        for each in State:
            state.add_metric([each.value], sum(worker.state is each for worker in self._registry))
        yield state
        per_worker = {
            "in_flight": "Requests that were sent to a worker and have not ended.",
            "prefill_tokens": "Prompt tokens that a worker has still to compute for them.",
            "held_tokens": "Tokens that they will hold in its KV memory.",
            "foreign": "Requests of others that it told of.",
        }
        for name, text in per_worker.items():
            family = GaugeMetricFamily(f"lightllm_controller_worker_{name}", text, labels=["worker"])
            for worker in self._registry:
                family.add_metric([worker.url], getattr(worker, name))
            yield family
        use = GaugeMetricFamily(
            "lightllm_controller_worker_kv_use",
            "Share of its KV memory in use, as it told.",
            labels=["worker"],
        )
        for worker in self._registry:
            use.add_metric([worker.url], worker.report.kv_use)
        yield use
