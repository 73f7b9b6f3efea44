"""Metrics of several processes: each writes a file, everybody reads the sums."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

from lightllm.http.metric_store import MetricStore, read_all
from lightllm.protocol.metrics import FIRST_TOKEN_SECONDS, HTTP_METRICS, LOOP_LAG_LATEST, REQUEST_COUNT


def _count(path: Path) -> None:
    store = MetricStore(path, HTTP_METRICS)
    for _ in range(1000):
        store.add(REQUEST_COUNT)
        store.observe(FIRST_TOKEN_SECONDS, 0.5)
    store.set(LOOP_LAG_LATEST, 0.25)


def test_store_sums_over_processes_and_survives_a_restart(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    for name in ("http-0", "http-1", "http-0"):
        process = context.Process(target=_count, args=(tmp_path / name,))
        process.start()
        process.join(20)
        assert process.exitcode == 0
    values = read_all(tmp_path, HTTP_METRICS)
    assert values[REQUEST_COUNT.name] == [3000.0]
    assert (
        values[FIRST_TOKEN_SECONDS.name][0] == 1500.0 and sum(values[FIRST_TOKEN_SECONDS.name][1:]) == 3000.0
    )
    assert values[LOOP_LAG_LATEST.name] == [0.25]
