"""Mapped files have all their room before anybody writes into them."""

import errno
import os
import subprocess
import sys

import pytest

from lightllm.errors import StartupError
from lightllm.http.metric_store import MetricStore
from lightllm.ipc.mapped_file import map_file
from lightllm.ipc.snapshot import SnapshotWriter
from lightllm.protocol.metrics import HTTP_METRICS


def test_a_file_has_its_blocks_at_once_and_is_never_shrunk(tmp_path):
    path = tmp_path / "file"
    first = map_file(path, 100_000)
    assert path.stat().st_blocks * 512 >= 100_000
    first[99_999] = 7
    second = map_file(path, 10)
    assert len(second) == 10 and path.stat().st_size == 100_000
    assert map_file(path, 100_000)[99_999] == 7


def test_a_reader_never_finds_a_file_that_is_too_small(tmp_path, monkeypatch):
    path = tmp_path / "file"
    reserve = os.posix_fallocate

    def look_first(descriptor: int, offset: int, size: int) -> None:
        assert not path.exists()
        reserve(descriptor, offset, size)
        assert not path.exists()

    monkeypatch.setattr(os, "posix_fallocate", look_first)
    map_file(path, 5000)[4999] = 1
    assert [file.name for file in tmp_path.iterdir()] == ["file"] and path.read_bytes()[4999] == 1


@pytest.mark.parametrize(
    "make", [SnapshotWriter, lambda path: MetricStore(path, HTTP_METRICS), lambda path: map_file(path, 5000)]
)
def test_a_full_file_system_is_an_error_that_names_it(tmp_path, monkeypatch, make):
    def full(descriptor: int, offset: int, size: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    message = rf"{tmp_path}/file cannot be made: No space left on device. {tmp_path} has \d+ of \d+ KiB free."
    with pytest.raises(StartupError, match=f"{message} Make room there, or set LIGHTLLM_RUNTIME_BASE"):
        make(tmp_path / "file")


def test_a_file_system_that_cannot_reserve_room_is_used_all_the_same(tmp_path, monkeypatch):
    def unsupported(descriptor: int, offset: int, size: int) -> None:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    monkeypatch.setattr(os, "posix_fallocate", unsupported)
    assert len(map_file(tmp_path / "file", 5000)) == 5000


CODE = """
from pathlib import Path
from lightllm.errors import StartupError
from lightllm.ipc.mapped_file import map_file
try:
    while True:
        map_file(Path("PLACE", str(len(list(Path("PLACE").iterdir())))), 3000)[2999] = 1
except StartupError as error:
    print(error)
"""


def test_a_memory_file_system_that_is_full_kills_nobody(tmp_path):
    inside = f'mount -t tmpfs -o size=16k none {tmp_path} && exec "$@"'
    probe = ["unshare", "-m", "sh", "-c", inside, "sh"]
    try:
        subprocess.run([*probe, "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no mounts of our own here")
    done = subprocess.run(
        [*probe, sys.executable, "-c", CODE.replace("PLACE", str(tmp_path))],
        capture_output=True,
        text=True,
        check=True,
    )
    assert f"cannot be made: No space left on device. {tmp_path} has 0 of 16 KiB free." in done.stdout
