"""When each process of a server has last shown that it runs: a file of 8 bytes each in shared memory.

A process whose work comes in short turns writes its own from its main loop: then a beat says that the loop turns. One
that may compute for minutes without a pause writes it from a thread: then a beat says that the process runs at all, and
what it computes is judged by something else.
"""

from __future__ import annotations

import contextlib
import os
import struct
import threading
import time
from pathlib import Path

from lightllm.ipc.mapped_file import map_file

BEAT_SECONDS = 1.0
"""Most seconds between two beats of a process that has nothing to do."""
_TIME = struct.Struct("<d")


class Beat:
    """Of one process, which has begun to run. Raises `StartupError` where there is no room for it."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        # Written by one store: struct fills its place with zeros first, which a reader may see.
        self._time = memoryview(map_file(path, _TIME.size)).cast("d")
        self.beat()

    def beat(self) -> None:
        """Takes well under a microsecond."""
        self._time[0] = time.monotonic()

    def beat_in_thread(self) -> None:
        """From now on until the process ends."""

        def run() -> None:
            while True:
                self.beat()
                time.sleep(BEAT_SECONDS)

        threading.Thread(target=run, name="beat", daemon=True).start()


def read_beats(folder: Path) -> dict[str, float]:
    """Process -> `time.monotonic()` of its latest beat, for all that have begun to run. A process that is being started again
    has none: its file may vanish at any moment."""
    beats = {}
    for name in os.listdir(folder) if folder.is_dir() else ():
        if not name.startswith("."):
            with contextlib.suppress(FileNotFoundError), open(os.path.join(folder, name), "rb") as file:
                data = file.read()
                if len(data) == _TIME.size:
                    beats[name] = _TIME.unpack(data)[0]
    return beats
