"""A child process that behaves as told: `python -m support.fake_child NAME BEHAVIOUR`. See `fake_server`."""

from __future__ import annotations

import atexit
import os
import signal
import sys
import threading
import time
from pathlib import Path

from lightllm.errors import InvalidModel
from lightllm.ipc.child import Child, run_child
from lightllm.ipc.snapshot import Snapshot, SnapshotWriter


def main(child: Child) -> None:
    behaviour = sys.argv[2]
    stop = threading.Event()
    commands: list[str] = []

    def on_command(command):
        commands.append(command.action)
        print(f"{child.name} got {command.action}", file=sys.stderr)
        if command.action == "stop" and behaviour != "stubborn":
            stop.set()

    if behaviour == "late":  # it is told what to do before it listens
        child.report("loading", "deaf")
        time.sleep(1.0)
    child.on_command(on_command)
    if behaviour == "sluggish":  # it shows that it runs some time after it is ready
        threading.Timer(2.0, lambda: child.beat.beat_in_thread()).start()
    else:
        child.beat.beat_in_thread()
    child.report("loading", "half way")
    if behaviour == "bad-model" or (behaviour == "once" and not _first_time(child)):
        raise InvalidModel("The model is broken.", "Take another one.")
    if behaviour == "raise":
        raise ValueError("a surprise")
    if behaviour == "die":
        print("about to die\nof old age", file=sys.stderr, flush=True)
        os._exit(3)
    if behaviour == "bus":
        os.kill(os.getpid(), signal.SIGBUS)
    if behaviour == "deaf":  # in the middle of an import that does not let other threads run
        os.kill(os.getpid(), signal.SIGSTOP)
    if behaviour == "hang":
        stop.wait()
        return
    if behaviour == "tidy":  # as libraries put devices in order when the interpreter ends
        atexit.register(lambda: (time.sleep(1.8), print("all in order", file=sys.stderr, flush=True)))
    if behaviour == "registered":  # what Intel's OpenMP runtime leaves when its process ends out of order
        Path(f"/dev/shm/__KMP_REGISTERED_LIB_{os.getpid()}_{os.getuid()}").touch()
    load = Path(os.environ["FAKE_LOAD"]) if "FAKE_LOAD" in os.environ else None
    writer = SnapshotWriter(child.runtime.snapshot_file) if child.name == "router" else None
    if writer is not None:
        writer.write(_snapshot(load))
    child.report("ready", seconds={"thinking": 0.01})
    while not stop.wait(0.02):
        if writer is not None:
            writer.write(_snapshot(load))


def _first_time(child: Child) -> bool:
    mark = child.runtime.path / f"{child.name}-was-here"
    if mark.exists():
        return False
    mark.touch()
    return True


def _snapshot(load: Path | None) -> Snapshot:
    running = int(load.read_text() or 0) if load is not None else 0
    return Snapshot(ready=1, running=running, slots_total=77)


if __name__ == "__main__":
    run_child(sys.argv[1], main)
