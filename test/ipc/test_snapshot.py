"""The shared snapshot: whole records only, also while it is being written."""

import subprocess
import sys

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
    writer.write(Snapshot(ready=1, running=number, refused=number, heartbeat=float(number), text_due_since=float(number)))
"""


def test_what_is_written_is_read(tmp_path):
    writer = SnapshotWriter(tmp_path / "snapshot")
    reader = SnapshotReader(tmp_path / "snapshot")
    assert reader.read() == Snapshot()
    snapshot = Snapshot(ready=1, running=2, slots_total=10**12, heartbeat=1.5)
    writer.write(snapshot)
    assert reader.read() == snapshot


def test_a_reader_never_sees_half_a_record(tmp_path):
    path = tmp_path / "snapshot"
    process = subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE)
    try:
        process.stdout.readline()
        reader = SnapshotReader(path)
        seen = set()
        for _ in range(20000):
            snapshot = reader.read()
            assert snapshot.running == snapshot.refused == snapshot.heartbeat == snapshot.text_due_since
            seen.add(snapshot.running)
        assert len(seen) > 10
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def test_a_new_writer_takes_over_the_file_that_readers_have_mapped(tmp_path):
    path = tmp_path / "snapshot"
    SnapshotWriter(path).write(Snapshot(running=1))
    reader = SnapshotReader(path)
    successor = SnapshotWriter(path)
    assert reader.read().running == 1
    successor.write(Snapshot(running=2))
    assert reader.read().running == 2
