"""20,000 requests of strangers, well-formed and not, beside a stream whose tokens are known: `support/hostile_bodies.py` and
`support/hostile_wire.py` make them."""

from __future__ import annotations

import re
import statistics
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from support import hostile_run
from support.llava import make_llava
from support.process_usage import Usage, check_growth, usage, wait_until_idle
from support.server import LightLLMServer

pytestmark = pytest.mark.slow
OPTIONS = [
    "--data_type", "fp32", "--model_name", "demo", "--max_total_token_num", "16000", "--running_max_req_size", "32",
    "--batch_max_tokens", "128", "--chunked_prefill_size", "64", "--default_max_new_tokens", "16",
]  # fmt: skip
"""fp32, in which tokens do not depend on the batch; rows and rounds few and small enough that requests wait and are cut."""
GROWTH = 48 << 10
"""KiB that a process may take beyond what it had after the first cases."""
PAUSE, USUAL_PAUSE = 30.0, 5.0
"""Seconds that the stream may stand still once, and in half of its runs, where other work keeps the cores. On an idle machine it
stays below one."""


@pytest.fixture(scope="module")
def server() -> Iterator[LightLLMServer]:
    with LightLLMServer(OPTIONS) as server:
        yield server


@pytest.fixture(scope="module")
def after_the_first(server: LightLLMServer) -> dict[int, Usage]:
    """What the processes hold when caches and pools are filled."""
    assert hostile_run.run(server.url, cases=5000, seed=100).problems == []
    return held(server)


def held(server: LightLLMServer) -> dict[int, Usage]:
    """By the processes of the server itself. Those that render templates end with what they could not render."""
    wait_until_idle(server.url)
    children = psutil.Process(server.process.pid).children()
    return usage([server.process.pid, *(child.pid for child in children)])


def defects(server: LightLLMServer) -> str:
    """What the log says around the first sign of one; a process that has ended shows in no answer, for it is started again."""
    lines = server.log.splitlines()
    found = [n for n, line in enumerate(lines) if re.search("Traceback|error id|started again", line)]
    return "\n".join(lines[max(0, found[0] - 40) : found[0] + 30]) if found else ""


@pytest.mark.parametrize("seed", range(2, 6))
def test_hostile_requests_are_answered_and_leave_a_stream_alone_long(
    server: LightLLMServer, after_the_first: dict[int, Usage], seed: int
) -> None:
    report = hostile_run.run(server.url, cases=5000, seed=seed)
    now = held(server)
    print(report, {pid: (after_the_first.get(pid), used) for pid, used in now.items()})
    assert defects(server) == "" and report.problems == []
    assert report.statuses[200] > 1000 and report.statuses[400] > 1000
    assert max(report.pauses) < PAUSE and statistics.median(report.pauses) < USUAL_PAUSE
    check_growth(after_the_first, now, GROWTH)


def test_hostile_images_are_answered_and_leave_a_stream_alone(tmp_path: Path) -> None:
    llava = make_llava(tmp_path / "model")
    options = [
        "--model_dir", str(llava.path), "--device", "cpu", "--data_type", "fp32", "--cache_capacity", "12",
        "--max_total_token_num", "4000", "--max_req_total_len", "512", "--cache_capacity_bytes", str(64 << 20),
        "--max_image_mb", "8", "--allowed_media_domains", "images.example",
    ]  # fmt: skip
    with LightLLMServer(options) as server:
        assert hostile_run.run(server.url, cases=300, seed=1, images=0.8).problems == []
        before = held(server)
        report = hostile_run.run(server.url, cases=2000, seed=2, images=0.8)
        now = held(server)
        print(report, {pid: (before.get(pid), used) for pid, used in now.items()})
        assert defects(server) == "" and report.problems == [] and report.statuses[200] > 200
        check_growth(before, now, GROWTH)
