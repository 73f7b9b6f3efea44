"""Streams and random cancels against the whole server, then: nothing leaked, nothing left running."""

from __future__ import annotations

import asyncio
import json
import time
import urllib.request
from pathlib import Path

import pytest
from support.server import LightLLMServer
from support.stream_load import LoadReport, run_load


def _tree(root: int) -> list[int]:
    found, todo = [], [root]
    while todo:
        pid = todo.pop()
        found.append(pid)
        for task in Path(f"/proc/{pid}/task").iterdir():
            todo += [int(child) for child in (task / "children").read_text().split()]
    return found


def _usage(root: int) -> dict[int, tuple[int, int]]:
    """Per process of the server: open file descriptors and resident KiB."""
    usage = {}
    for pid in _tree(root):
        status = Path(f"/proc/{pid}/status").read_text()
        resident = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS"))
        usage[pid] = (len(list(Path(f"/proc/{pid}/fd").iterdir())), resident)
    return usage


def _get(url: str) -> dict[str, float]:
    with urllib.request.urlopen(url, timeout=10) as response:
        return dict(json.loads(response.read()))


def _wait_until_idle(url: str, seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while True:
        load = _get(f"{url}/token_load")
        if all(value == 0 for value in load.values()):
            return
        assert time.monotonic() < end, f"the server still holds tokens: {load}"
        time.sleep(0.05)


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
        _wait_until_idle(server.url)
        before = _usage(server.process.pid)
        report = load(seconds, seed=2)
        _wait_until_idle(server.url)
        after = _usage(server.process.pid)
    print(dict(report.outcomes), report.tokens, "tokens", {pid: (before[pid], after[pid]) for pid in before})
    assert report.problems == []
    assert report.outcomes["complete"] > clients and report.outcomes["cancelled"] > 0
    assert (report.outcomes["obeyed"] > clients // 2) == bool(constrained_share)
    assert after.keys() == before.keys(), "a process was replaced or is left over"
    for pid, (descriptors, resident) in after.items():
        assert descriptors <= before[pid][0] + 4, (
            f"process {pid} leaks descriptors: {before[pid][0]} -> {descriptors}"
        )
        assert resident <= before[pid][1] + resident_growth_kib, (
            f"process {pid} grew from {before[pid][1]} to {resident} KiB"
        )


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
