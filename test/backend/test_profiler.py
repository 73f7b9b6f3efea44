"""Profiles on demand: bounded, ended by themselves, nothing left behind but their traces."""

from __future__ import annotations

import gzip
import json
import os
import stat
import time
from pathlib import Path

import pytest
import torch

from lightllm.backend import profiler
from lightllm.backend.profiler import Profiler


def recorded(trace: str) -> int:
    with gzip.open(trace) as file:
        return sum(event.get("name") == "aten::mm" for event in json.load(file)["traceEvents"])


def run(profiler: Profiler, rounds: int) -> None:
    for _ in range(rounds):
        torch.mm(torch.ones(2, 2), torch.ones(2, 2))
        profiler.round_done()


def files(folder: Path) -> list[str]:
    return [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()]


def test_a_profile_ends_after_its_rounds_whoever_forgets_it(tmp_path: Path) -> None:
    one = Profiler(0, str(tmp_path))
    one.start(3)
    run(one, 50)
    assert recorded(one.stop().result(30)) == 3


def test_a_profile_ends_after_its_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profiler, "MAX_SECONDS", 0.0)
    one = Profiler(0, str(tmp_path))
    one.start(1000)
    run(one, 50)
    assert recorded(one.stop().result(30)) == 1


def test_a_profile_that_is_stopped_has_the_rounds_so_far(tmp_path: Path) -> None:
    one = Profiler(0, str(tmp_path))
    one.start(1000)
    run(one, 2)
    assert recorded(one.stop().result(30)) == 2
    run(one, 5)


def test_nothing_but_the_trace_is_left_and_only_its_owner_reads_it(tmp_path: Path) -> None:
    folder = tmp_path / "made" / "when needed"
    one = Profiler(7, str(folder))
    one.start(1)
    run(one, 1)
    trace = Path(one.stop().result(30))
    assert files(folder) == [str(trace.relative_to(folder))] and trace.name == "rank-7.json.gz"
    assert stat.S_IMODE(trace.parent.stat().st_mode) == 0o700
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_a_relative_folder_is_answered_in_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    one = Profiler(0, "traces")
    one.start(1)
    run(one, 1)
    assert Path(one.stop().result(30)).is_relative_to(tmp_path / "traces")


def test_calls_at_the_wrong_time_say_so(tmp_path: Path) -> None:
    one = Profiler(0, str(tmp_path))
    with pytest.raises(RuntimeError, match="no profile is running"):
        one.stop()
    one.start(2)
    with pytest.raises(RuntimeError, match="running already"):
        one.start(2)
    run(one, 2)
    one.stop().result(30)
    with pytest.raises(RuntimeError, match="no profile is running"):
        one.stop()


def test_without_a_folder_there_are_no_profiles() -> None:
    with pytest.raises(RuntimeError, match="--profile_dir"):
        Profiler(0, None).start(1)


def test_a_trace_that_cannot_be_written_is_told_and_rounds_go_on(tmp_path: Path) -> None:
    one = Profiler(0, str(tmp_path / "gone"))
    one.start(1)
    os.rmdir(tmp_path / "gone")
    run(one, 3)
    with pytest.raises(OSError, match="gone"):
        one.stop().result(30)
    one.start(1)
    run(one, 1)
    assert recorded(one.stop().result(30)) == 1


def test_the_next_profile_may_begin_once_the_last_is_written_whoever_asked_for_it(tmp_path: Path) -> None:
    one = Profiler(0, str(tmp_path))
    one.start(1)
    run(one, 1)
    end = time.monotonic() + 30
    while True:
        try:
            one.start(1)
            break
        except RuntimeError as error:
            assert "still being written" in str(error) and time.monotonic() < end
            time.sleep(0.01)
    run(one, 1)
    assert recorded(one.stop().result(30)) == 1
    assert len(files(tmp_path)) == 2
