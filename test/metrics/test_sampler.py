"""Samples of a second, from counters."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from lightllm.http.metric_store import MetricStore
from lightllm.ipc.snapshot import Snapshot
from lightllm.metrics.sampler import Sampler, quantile
from lightllm.protocol.metrics import (
    FIRST_TOKEN_SECONDS,
    HTTP_METRICS,
    INTER_TOKEN_SECONDS,
    REQUEST_FAILURE,
    REQUEST_SUCCESS,
)


@pytest.fixture
def stores(tmp_path: Path) -> list[MetricStore]:
    return [MetricStore(tmp_path / f"http-{worker}", HTTP_METRICS) for worker in range(2)]


def test_rates_are_what_counters_grew_by_over_all_http_servers(
    tmp_path: Path, stores: list[MetricStore]
) -> None:
    sampler = Sampler(tmp_path)
    stores[0].add(REQUEST_SUCCESS, 100)  # before this Metric Server began
    assert sampler.sample(Snapshot(prompt_tokens=1000), True, 50.0, 1e9) is None
    stores[0].add(REQUEST_SUCCESS, 3)
    stores[1].add(REQUEST_SUCCESS, 5)
    stores[1].add(REQUEST_FAILURE, 1)
    snapshot = Snapshot(prompt_tokens=1600, output_tokens=30, running=2, waiting=7, paused=1, slots_total=900, slots_used=40, slots_cached=50)  # fmt: skip
    sample = sampler.sample(snapshot, True, 52.0, 1e9 + 2)
    assert sample is not None and sample.time == 1e9 + 2 and sample.healthy == 1
    assert (sample.input_tokens_per_second, sample.output_tokens_per_second) == (300, 15)
    assert (sample.requests_per_second, sample.failures_per_second) == (4, 0.5)
    assert (sample.running, sample.waiting, sample.paused) == (2, 7, 1)
    assert (sample.slots_total, sample.slots_used, sample.slots_cached) == (900, 40, 50)
    assert all(map(math.isnan, (sample.ttft_p50, sample.ttft_p99, sample.itl_p50, sample.itl_p99)))


def test_quantiles_are_those_of_the_last_ten_seconds(tmp_path: Path, stores: list[MetricStore]) -> None:
    sampler = Sampler(tmp_path)
    for _ in range(1000):
        stores[0].observe(INTER_TOKEN_SECONDS, 4.0)
    sampler.sample(Snapshot(), True, 0.0, 0.0)
    for store in stores:
        for _ in range(49):
            store.observe(INTER_TOKEN_SECONDS, 0.003)
        store.observe(INTER_TOKEN_SECONDS, 0.3)
        store.observe(FIRST_TOKEN_SECONDS, 1.0)
    samples = [sampler.sample(Snapshot(), True, float(second), second) for second in range(1, 12)]
    for sample in samples[:10]:
        assert sample is not None
        assert 0.0025 < sample.itl_p50 <= 0.005 and 0.25 < sample.itl_p99 <= 0.5
        assert 0.98 < sample.ttft_p50 < sample.ttft_p99 < 1.48
    last = samples[10]
    assert last is not None and math.isnan(last.itl_p50) and math.isnan(last.ttft_p99)


def test_a_quantile_is_spread_within_its_bucket() -> None:
    assert quantile((1.0, 2.0), (10, 10, 0), 0.5) == 1.0
    assert quantile((1.0, 2.0), (10, 10, 0), 0.75) == 1.5
    assert quantile((1.0, 2.0), (0, 0, 4), 0.5) == 2.0
    assert math.isnan(quantile((1.0, 2.0), (0, 0, 0), 0.5))
