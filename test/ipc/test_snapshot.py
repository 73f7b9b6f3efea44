"""The shared snapshot: whole records only, also while it is being written."""

import subprocess
import sys
import time

from lightllm.ipc.snapshot import Snapshot, SnapshotReader, SnapshotWriter

WRITER = """
import sys
from pathlib import Path
from lightllm.ipc.snapshot import Snapshot, SnapshotWriter
writer = SnapshotWriter(Path(sys.argv[1]))
print("ready", flush=True)
number = 0
while True:
    number += 1
    writer.write(Snapshot(ready=1, running=number, refused=number, round_due_since=float(number)))
"""


def test_what_is_written_is_read(tmp_path):
    writer = SnapshotWriter(tmp_path / "snapshot")
    reader = SnapshotReader(tmp_path / "snapshot")
    assert reader.read() == Snapshot()
    snapshot = Snapshot(ready=1, running=2, slots_total=10**12, round_due_since=1.5)
    writer.write(snapshot)
    assert reader.read() == snapshot


def test_a_reader_never_sees_half_a_record(tmp_path):
    path = tmp_path / "snapshot"
    process = subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE)
    try:
        process.stdout.readline()
        reader = SnapshotReader(path)
        seen = set()
        started = time.monotonic()
        # As long as the writer needs to have been seen: on a busy machine it may not run for many reads.
        while len(seen) <= 100 and time.monotonic() < started + 60:
            snapshot = reader.read()
            assert snapshot.running == snapshot.refused == snapshot.round_due_since
            seen.add(snapshot.running)
        assert len(seen) > 100
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def test_a_writer_that_dies_in_the_middle_of_a_record_leaves_the_one_before_it(tmp_path):
    old, new = (
        Snapshot(ready=1, running=1, round_due_since=1.0),
        Snapshot(ready=0, running=2, waiting=3, round_due_since=2.0),
    )
    for earlier in (1, 2):  # the latest record is the first, or the second of the file
        path = tmp_path / str(earlier)
        writer = SnapshotWriter(path)
        for _ in range(earlier):
            writer.write(old)
        before = path.read_bytes()
        writer.write(new)
        after = path.read_bytes()
        changed = [i for i, (a, b) in enumerate(zip(before, after, strict=True)) if a != b]
        assert changed[0] == 0 and len(changed) > 5  # byte 0 is written last
        for written in range(1, len(changed)):
            half = bytearray(before)
            for i in changed[1 : 1 + written]:
                half[i] = after[i]
            (tmp_path / "half").write_bytes(half)
            assert SnapshotReader(tmp_path / "half").read() == old


def test_a_new_writer_takes_over_the_file_that_readers_have_mapped(tmp_path):
    path = tmp_path / "snapshot"
    SnapshotWriter(path).write(Snapshot(running=1))
    reader = SnapshotReader(path)
    successor = SnapshotWriter(path)
    assert reader.read().running == 1
    successor.write(Snapshot(running=2))
    assert reader.read().running == 2
