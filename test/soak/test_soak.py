"""Streams and random cancels against the whole server, then: nothing leaked, nothing left running."""

from __future__ import annotations

import asyncio

import pytest
from support.process_usage import check_growth, tree, usage, wait_until_idle
from support.server import LightLLMServer
from support.stream_load import LoadReport, run_load


def _soak(
    options: list[str], clients: int, seconds: float, resident_growth_kib: int, constrained_share: float = 0.0
) -> None:
    def load(seconds: float, seed: int) -> LoadReport:
        return asyncio.run(
            run_load(server.url, "demo", clients, seconds, 0.3, seed, constrained_share=constrained_share)
        )

    with LightLLMServer(options) as server:
        server.wait_ready()
        load(min(seconds / 3, 20), seed=1)
        wait_until_idle(server.url)
        before = usage(tree(server.process.pid))
        report = load(seconds, seed=2)
        wait_until_idle(server.url)
        after = usage(tree(server.process.pid))
    print(dict(report.outcomes), report.tokens, "tokens", {pid: (before[pid], after[pid]) for pid in before})
    assert report.problems == []
    assert report.outcomes["complete"] > clients and report.outcomes["cancelled"] > 0
    assert (report.outcomes["obeyed"] > clients // 2) == bool(constrained_share)
    check_growth(before, after, resident_growth_kib)


def test_streams_with_random_cancels_leave_nothing_behind() -> None:
    _soak(
        ["--mock_backend", "step_ms=2", "--model_name", "demo"],
        clients=48,
        seconds=5,
        resident_growth_kib=30_000,
    )


@pytest.mark.slow
def test_soak_demo_model() -> None:
    options = ["--model_name", "demo", "--max_total_token_num", "20000", "--running_max_req_size", "128"]
    _soak(options, clients=200, seconds=180, resident_growth_kib=60_000, constrained_share=0.25)
