"""The one rule by which the Health Server and, without it, Http Servers judge over the server."""

from __future__ import annotations

from pathlib import Path

import pytest

from lightllm.ipc.health import HealthReader, HealthWriter, ProcessListReader, ProcessListWriter, judge
from lightllm.ipc.snapshot import Snapshot
from lightllm.ipc.stalls import Stall, find_stalls
from lightllm.protocol.health import ProcessState

SERVES = Snapshot(ready=1)
NOW = 1000.0


def test_the_silent_are_found_longest_first_and_an_observer_hides_no_late_round() -> None:
    beats = {"metrics": NOW - 20, "router": NOW - 3, "http-0": NOW - 1}
    late = Snapshot(ready=1, in_flight_rounds=1, round_due_since=NOW - 70)
    assert find_stalls(SERVES, beats, NOW, 60.0) == [Stall("metrics", 20)]
    assert find_stalls(late, beats, NOW, 60.0) == [Stall("backend-0", 70), Stall("metrics", 20)]
    beats["router"] = NOW - 90
    assert find_stalls(late, beats, NOW, 60.0) == [Stall("router", 90), Stall("metrics", 20)]


def test_while_a_model_is_loaded_the_reason_is_what_is_being_done() -> None:
    loading = [ProcessState("backend-0", "loading", "weights 40%", away_since=NOW - 100), ProcessState("http-0", "ready")]  # fmt: skip
    health = judge(loading, Snapshot(), [], NOW)
    assert (health.status, health.reason) == ("starting", "backend-0 is loading: weights 40%")
    assert health.processes[0] == ProcessState("backend-0", "loading", "weights 40%")


def test_a_process_that_is_started_again_has_as_long_as_one_that_is_silent() -> None:
    for name, needed in (("router", True), ("detokenizer", True), ("metrics", False), ("http-1", False)):
        away = [ProcessState(name, "starting", restarts=1, away_since=NOW - 6.9)]
        assert judge(away, SERVES, [], NOW).status == "ok"
        assert judge(away, SERVES, [], NOW).reason == f"{name} is starting"
        health = judge(away, SERVES, [], NOW + 1)
        assert health.status == ("unhealthy" if needed else "ok")
        assert health.reason.startswith(f"{name} has not been ready for 8 s; ") == needed


def test_a_stall_comes_before_the_lack_of_tokens_that_follows_from_it() -> None:
    listed = [ProcessState("backend-0", "ready")]
    health = judge(listed, SERVES, [], NOW, no_token_seconds=130)
    assert health.status == "unhealthy" and "no token has come for 130 s" in health.reason
    assert health.processes == listed
    health = judge(listed, SERVES, [Stall("backend-0", 9.4)], NOW, no_token_seconds=130)
    assert health.reason == "backend-0 has made no progress for 9 s"
    assert health.processes == [ProcessState("backend-0", "hanging", "no sign of life for 9 s")]


def test_observers_that_hang_are_noted_and_change_nothing() -> None:
    health = judge([ProcessState("metrics", "ready")], SERVES, [Stall("metrics", 9)], NOW)
    assert (health.status, health.reason) == ("ok", "metrics has made no progress for 9 s")
    assert health.processes[0].state == "hanging"


def test_a_process_that_has_ended_does_not_hang() -> None:
    ended = [ProcessState("router", "ended", restarts=5, away_since=NOW - 7.6)]
    health = judge(ended, SERVES, [Stall("router", 8)], NOW)
    assert (health.status, health.reason) == (
        "unhealthy",
        "router has not been ready for 8 s; router is ended",
    )
    assert health.processes == [ProcessState("router", "ended", restarts=5)]


@pytest.mark.parametrize("name", ["router", "metrics"])
def test_the_longest_details_have_room(tmp_path: Path, name: str) -> None:
    listed = [ProcessState(name, "loading", "\x01" * 10_000, 99, NOW - 1e9) for _ in range(50)]
    ProcessListWriter(tmp_path / "processes", 50).write(listed)
    listed = ProcessListReader(tmp_path / "processes").read()
    assert len(listed) == 50 and 10 < len(listed[0].detail) < 200
    health = judge(listed, SERVES, [Stall(name, 1e9)], NOW)
    HealthWriter(tmp_path / "health", 50).write(health)
    assert HealthReader(tmp_path / "health").read() == health
