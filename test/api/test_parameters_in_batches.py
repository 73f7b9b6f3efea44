"""Parameters at their extremes, in batches: every answer is one that is documented, and the streams beside them say what they
say alone."""

from __future__ import annotations

import re

import httpx
import pytest
from support import parameter_fuzz
from support.metrics import samples
from support.server import LightLLMServer

OPTIONS = [
    "--data_type", "fp32", "--model_name", "demo", "--max_total_token_num", "12000", "--running_max_req_size", "24",
    "--batch_max_tokens", "128", "--chunked_prefill_size", "64", "--default_max_new_tokens", "16",
]  # fmt: skip
"""fp32, in which tokens do not depend on the batch; rows and rounds few and small enough that requests wait and are cut."""


def check(cases: int, seed: int) -> None:
    with LightLLMServer(OPTIONS) as server:
        server.wait_ready()
        report = parameter_fuzz.run(server.url, cases, seed)
        metrics = httpx.get(f"{server.url}/metrics", timeout=30).text
        load = httpx.get(f"{server.url}/token_load", timeout=30).json()
    print(
        dict(report.statuses),
        report.streams,
        "steady streams,",
        report.ended_with_error,
        "streams with an error event",
    )
    assert report.problems == []
    assert report.streams >= len(parameter_fuzz.STEADY)
    assert report.statuses[200] > cases // 3 and report.statuses[400] + report.statuses[422] > cases // 10
    for name in ("not_finite", "row_failures"):
        assert samples(metrics)[f"lightllm_router_{name}_total"] == 0
    assert not re.search(r"round \d+ failed|Traceback|not numbers|NaN", server.log), server.log[-3000:]
    assert all(value == 0 for value in load.values())


def test_extreme_parameters_in_batches_leave_steady_streams_alone() -> None:
    check(cases=30, seed=1)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2, 6))
def test_extreme_parameters_in_batches_leave_steady_streams_alone_long(seed: int) -> None:
    check(cases=2500, seed=seed)
