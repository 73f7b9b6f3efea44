"""When processes have last shown that they run."""

from __future__ import annotations

import time
from pathlib import Path

from lightllm.ipc.beats import Beat, read_beats


def test_the_latest_beat_of_each_process_is_read(tmp_path: Path) -> None:
    folder = tmp_path / "beats"
    assert read_beats(folder) == {}
    begin = time.monotonic()
    router, backend = Beat(folder / "router"), Beat(folder / "backend-0")
    first = read_beats(folder)
    assert set(first) == {"router", "backend-0"} and min(first.values()) >= begin
    router.beat()
    second = read_beats(folder)
    assert second["router"] > first["router"] and second["backend-0"] == first["backend-0"]
    backend.beat()
    assert read_beats(folder)["backend-0"] <= time.monotonic()


def test_a_file_that_vanishes_while_they_are_read_is_no_error(tmp_path: Path) -> None:
    """As of a process that is started again: what is listed may be gone when it is opened."""
    Beat(tmp_path / "router")
    (tmp_path / "backend-0").symlink_to(tmp_path / "gone")
    (tmp_path / ".http-0.new").write_bytes(b"half")
    assert set(read_beats(tmp_path)) == {"router"}
