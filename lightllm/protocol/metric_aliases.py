"""The names that other servers give to what is measured here, for dashboards and routers that know no others: vLLM's (its Grafana
dashboards, the gateway API inference extension), and those that LightLLM has had since version 1.2.

Nothing is counted for them: they are made of our own metrics when /metrics is asked for.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

from lightllm.protocol import metrics
from lightllm.protocol.metrics import SNAPSHOT_METRICS, Metric

Values = Mapping[str, Sequence[float]]
"""Name of a metric -> its values, as `http.metric_store.read_all` has them."""


@dataclasses.dataclass(frozen=True)
class Alias:
    """Another name, or a figure that follows from our own."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    made_of: str
    """For the docs and for HELP: our own metrics."""
    value: Callable[[Values], Sequence[float]]
    buckets: tuple[float, ...] = ()
    label: str = ""
    values: tuple[str, ...] = ()
    labels: tuple[tuple[str, Callable[[Values], str]], ...] = ()
    """More labels of the one sample."""

    @property
    def help(self) -> str:
        return f"As {self.made_of}."


_SNAPSHOT = {field: metric for metric, field in SNAPSHOT_METRICS}


def _same(name: str, metric: Metric, label: str = "") -> Alias:
    return Alias(
        name, metric.kind, metric.name, lambda values: values[metric.name], metric.buckets,
        label or metric.label, metric.values,
    )  # fmt: skip


def _of(values: Values, field: str) -> float:
    return values[_SNAPSHOT[field].name][0]


def _cached(values: Values) -> float:
    """The sum of a histogram stands before its buckets."""
    return values[metrics.CACHED_TOKENS.name][0]


def _prompt_tokens(values: Values) -> list[float]:
    return [_of(values, "prompt_tokens") + _cached(values)]


def _hit_rate(values: Values) -> list[float]:
    asked = _prompt_tokens(values)[0]
    return [_cached(values) / asked if asked else 0.0]


def _usage(values: Values) -> list[float]:
    total = _of(values, "slots_total")
    return [_of(values, "slots_used") / total if total else 0.0]


_PROMPT = "lightllm_prompt_tokens + the sum of lightllm_cache_length"

VLLM = (
    _same("vllm:num_requests_running", _SNAPSHOT["running"]),
    Alias("vllm:num_requests_waiting", "gauge", "lightllm_queue_size + lightllm_batch_pause_size",
          lambda values: [_of(values, "waiting") + _of(values, "paused")]),
    Alias("vllm:kv_cache_usage_perc", "gauge", "lightllm_slots_used / lightllm_slots_total", _usage),
    Alias("vllm:cache_config_info", "gauge", "1, with lightllm_slots_total as a label", lambda values: [1.0],
          labels=(("block_size", lambda values: "1"),
                  ("num_gpu_blocks", lambda values: str(int(_of(values, "slots_total")))))),
    _same("vllm:num_preemptions", _SNAPSHOT["pauses"]),
    Alias("vllm:prompt_tokens", "counter", _PROMPT, _prompt_tokens),
    _same("vllm:generation_tokens", _SNAPSHOT["output_tokens"]),
    Alias("vllm:prefix_cache_queries", "counter", _PROMPT, _prompt_tokens),
    Alias("vllm:prefix_cache_hits", "counter", "the sum of lightllm_cache_length", lambda values: [_cached(values)]),
    _same("vllm:request_success", metrics.ANSWERS_ENDED, label="finished_reason"),
    _same("vllm:e2e_request_latency_seconds", metrics.INFERENCE_SECONDS),
    _same("vllm:time_to_first_token_seconds", metrics.FIRST_TOKEN_SECONDS),
    _same("vllm:inter_token_latency_seconds", metrics.INTER_TOKEN_SECONDS),
    _same("vllm:time_per_output_token_seconds", metrics.INTER_TOKEN_SECONDS),
    _same("vllm:request_time_per_output_token_seconds", metrics.MEAN_TOKEN_SECONDS),
    _same("vllm:request_queue_time_seconds", metrics.QUEUE_SECONDS),
    _same("vllm:request_prefill_time_seconds", metrics.PREFILL_SECONDS),
    _same("vllm:request_decode_time_seconds", metrics.DECODE_SECONDS),
    _same("vllm:request_inference_time_seconds", metrics.RUN_SECONDS),
    _same("vllm:request_prompt_tokens", metrics.INPUT_LENGTH),
    _same("vllm:request_generation_tokens", metrics.GENERATED_TOKENS),
    _same("vllm:request_max_num_generation_tokens", metrics.GENERATED_TOKENS),
    _same("vllm:request_params_max_tokens", metrics.MAX_NEW_TOKENS),
)  # fmt: skip

UPSTREAM = (
    _same("lightllm_num_running_reqs", _SNAPSHOT["running"]),
    _same("lightllm_generation_tokens", _SNAPSHOT["output_tokens"]),
    Alias("lightllm_cache_hit_rate", "gauge", f"the sum of lightllm_cache_length / ({_PROMPT})", _hit_rate),
    _same("lightllm_gen_throughput", metrics.OUTPUT_RATE),
)  # fmt: skip

ALIASES = (*VLLM, *UPSTREAM)
