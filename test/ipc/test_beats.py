"""When processes have last shown that they run."""

from __future__ import annotations

import subprocess
import sys
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


_BEATING = """
import sys, time
from pathlib import Path
from lightllm.ipc.beats import Beat
beat = Beat(Path(sys.argv[1]))
print("beating", flush=True)
while True:
    beat.beat()
"""


def test_a_beat_is_read_whole_while_it_is_written(tmp_path: Path) -> None:
    """By another process, at any moment: half a beat would be a process that has hung since the machine was started."""
    begin = time.monotonic()
    writer = subprocess.Popen(
        [sys.executable, "-c", _BEATING, str(tmp_path / "router")], stdout=subprocess.PIPE
    )
    try:
        assert writer.stdout is not None and writer.stdout.readline() == b"beating\n"
        seen = [read_beats(tmp_path)["router"] for _ in range(20_000)]
    finally:
        writer.kill()
        writer.wait()
        writer.stdout.close()
    assert min(seen) >= begin and max(seen) <= time.monotonic()
