"""The log on its way out: written as it is, never waited for, and what is lost is counted."""

import fcntl
import os
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from lightllm.server.log_output import LogOutput


@pytest.fixture
def pipe():
    """(reader, writer) of a pipe that holds 4 KiB."""
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
    yield reader, writer
    os.close(reader)


def read_until(reader: int, end: bytes) -> bytes:
    data = b""
    limit = time.monotonic() + 10
    while not data.endswith(end):
        assert time.monotonic() < limit
        data += os.read(reader, 65536)
    return data


def test_everything_is_written_in_order(pipe):
    reader, writer = pipe
    output = LogOutput(writer)
    expected = b"".join(b"line %d\n" % number for number in range(5000))
    for number in range(5000):
        output.write(f"line {number}\n")
    assert read_until(reader, b"line 4999\n") == expected
    output.close()


def test_a_reader_that_does_not_read_holds_up_nobody_and_what_was_lost_is_counted(pipe):
    reader, writer = pipe
    output = LogOutput(writer, limit=10_000)
    begin = time.monotonic()
    for number in range(2000):
        output.write(f"line {number:04}\n")  # 10 bytes: the pipe and the limit hold 1,410 of them at most
    assert time.monotonic() - begin < 5
    begin = time.monotonic()
    output.close()
    assert time.monotonic() - begin < 5  # it waits two seconds
    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(read_until, reader, b"the end\n")
        output.close()  # there is a reader again: it waits until everything is written
        output.write("the end\n")
        lines = reading.result().decode().splitlines()
    kept = [line for line in lines if line.startswith("line")]
    assert 1000 <= len(kept) <= 1410
    assert kept == [f"line {number:04}" for number in range(len(kept))]
    notes = [line for line in lines if not line.startswith("line")][:-1]
    assert notes and all(
        note.endswith(" lines of the log were lost: they could not be written)") for note in notes
    )
    assert sum(int(note[1:].split()[0]) for note in notes) == 2000 - len(kept)


def test_a_full_disk_and_a_closed_pipe_raise_nothing():
    full = os.open("/dev/full", os.O_WRONLY)
    reader, writer = os.pipe()
    os.close(reader)
    for descriptor in (full, writer, 10_000):
        output = LogOutput(descriptor)
        output.write("lost\n")
        output.close()


def test_lines_are_written_again_when_there_is_room_again(tmp_path):
    full = os.open("/dev/full", os.O_WRONLY)
    output = LogOutput(full)
    output.write("one\ntwo\n")
    output.close()
    file = os.open(tmp_path / "log", os.O_CREAT | os.O_WRONLY)
    os.dup2(file, full)  # the disk has room now
    output.write("three\n")
    output.close()
    assert (
        tmp_path / "log"
    ).read_text() == "(2 lines of the log were lost: they could not be written)\nthree\n"


def test_an_output_that_somebody_made_nonblocking_is_waited_for(pipe):
    reader, writer = pipe
    os.set_blocking(writer, False)
    output = LogOutput(writer)
    output.write("x" * 50_000 + "\n")
    assert len(read_until(reader, b"\n")) == 50_001
    output.close()
