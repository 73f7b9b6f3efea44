"""Files of images: whole or not there, mapped without a copy, and where the folder is."""

import os
import shutil
import subprocess
import sys

import numpy as np
import pytest

from lightllm.errors import StartupError
from lightllm.ipc.image_files import EmbeddingHeader, ImageFiles, embedding_size, largest_size
from lightllm.ipc.image_folder import make_image_folder
from lightllm.ipc.runtime_dir import RuntimeDir

MIB = 1 << 20


def header(tokens=3, width=4, dtype="float32", key="k"):
    return EmbeddingHeader(key, 2**24, tokens, dtype, [tokens, width])


@pytest.fixture
def files(tmp_path):
    return ImageFiles(tmp_path)


def test_an_embedding_is_read_as_it_was_written_and_without_a_copy(files):
    array = np.arange(12, dtype=np.float32).reshape(3, 4)
    files.write_embedding(7, header(), array.data)
    embedding = files.open_embedding(7)
    view = np.frombuffer(embedding.map, np.float32, offset=embedding.offset).reshape(embedding.header.shape)
    assert embedding.header == header() and np.array_equal(view, array)
    assert files.size_of_embedding(7) == embedding_size([3, 4], "float32") == embedding.offset + 48
    assert largest_size(10, [3, 4], "float32") == 10 + embedding_size([3, 4], "float32")


def test_a_reader_keeps_what_it_has_mapped_and_can_harm_nobody(files):
    array = np.ones((3, 4), np.float32)
    files.write_embedding(7, header(), array.data)
    one, other = files.open_embedding(7), files.open_embedding(7)
    files.remove(7)
    one.data[:4] = b"\0\0\0\0"
    assert bytes(other.data) == array.tobytes()
    with pytest.raises(FileNotFoundError):
        files.open_embedding(7)


def test_what_does_not_fit_its_header_is_no_embedding(files):
    with pytest.raises(ValueError, match="47 bytes instead of 48"):
        files.write_embedding(7, header(), bytes(47))
    with pytest.raises(ValueError, match="or its header"):
        files.write_embedding(7, header(key="k" * 4096), bytes(48))
    files.write_embedding(7, header(), bytes(48))
    with (files.folder / "7.embedding").open("ab") as file:
        file.write(b"more")
    with pytest.raises(ValueError, match="length"):
        files.open_embedding(7)
    assert [path.name for path in files.folder.iterdir()] == ["7.embedding"]


def test_what_a_dead_process_was_writing_is_removed_and_what_a_living_one_writes_is_not(files):
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        pass
    for pid in (process.pid, os.getpid()):
        (files.folder / f".5.data.{pid}.{pid}").touch()
    files.write_data(6, b"whole")
    files.remove_unfinished()
    assert sorted(os.listdir(files.folder)) == [f".5.data.{os.getpid()}.{os.getpid()}", "6.data"]
    assert list(files.items()) == [(6, False)] and files.read_data(6) == b"whole"


def test_a_full_file_system_leaves_no_half_file(files, monkeypatch):
    def fail(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.replace", fail)
    with pytest.raises(OSError, match="No space"):
        files.write_data(6, b"data")
    assert not os.listdir(files.folder)


@pytest.fixture
def runtime(tmp_path):
    (tmp_path / "r").mkdir()
    return RuntimeDir.create(tmp_path / "r")


def room(monkeypatch, free):
    """free: bytes that are free, by folder."""
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(
        "lightllm.ipc.image_folder.shutil.disk_usage", lambda path: usage._replace(free=free[path])
    )


def test_the_folder_is_in_shared_memory_and_goes_with_the_server(runtime, tmp_path, monkeypatch):
    room(monkeypatch, {tmp_path: 100 * MIB})
    folder = make_image_folder(runtime, None, 10 * MIB, tmp_path)
    assert folder.capacity_bytes == 50 * MIB
    ImageFiles(runtime.images_dir).write_data(1, b"x")
    assert list(tmp_path.glob("lightllm-*/*/1.data"))
    folder.remove()
    runtime.remove()
    assert not list(tmp_path.glob("lightllm-*/*-*")) and not runtime.path.exists()


@pytest.mark.parametrize(
    ("given", "free", "capacity"),
    [(None, 12, 10), (None, 100_000, 8192), (30, 31, 30), (None, 10, 10)],
)  # fmt: skip
def test_how_much_the_cache_takes(runtime, tmp_path, monkeypatch, given, free, capacity):
    room(monkeypatch, {tmp_path: free * MIB})
    folder = make_image_folder(runtime, given and given * MIB, 10 * MIB, tmp_path)
    assert folder.capacity_bytes == capacity * MIB
    folder.remove()


def test_shared_memory_that_is_too_small_gives_way_to_the_runtime_folder(runtime, tmp_path, monkeypatch):
    room(monkeypatch, {tmp_path: 9 * MIB, runtime.path: 60 * MIB})
    folder = make_image_folder(runtime, None, 10 * MIB, tmp_path)
    assert folder.capacity_bytes == 30 * MIB
    assert runtime.images_dir.is_dir() and not runtime.images_dir.is_symlink()
    folder.remove()


def test_too_little_room_everywhere_is_one_line_with_the_number_needed(runtime, tmp_path, monkeypatch):
    room(monkeypatch, {tmp_path: 64 * MIB, runtime.path: 20 * MIB})
    with pytest.raises(StartupError, match=rf"Images need 65 MiB.*{tmp_path} has 64, .* has 20 MiB free"):
        make_image_folder(runtime, None, 64 * MIB + 1, tmp_path)
    with pytest.raises(StartupError, match="--cache_capacity_bytes 9 is too small.*needs 10"):
        make_image_folder(runtime, 9, 10, tmp_path)
