"""How many connections each Http worker has, in shared memory: whoever has more than another lets that one accept the next.

The workers share one listening socket, and the kernel wakes all of them; the first one takes what is there. Connections
are kept for long, so that without this one worker may have the streams of three.
"""

from __future__ import annotations

from pathlib import Path

from lightllm.ipc.mapped_file import map_file

_WIDTH = 4


class ConnectionCounts:
    """The first one to be made makes the file: the Supervisor's. Raises `StartupError`."""

    def __init__(self, path: Path, workers: int, own: int = 0) -> None:
        """own: number of the worker that publishes its count here."""
        self._own = own
        self._counts = memoryview(map_file(path, workers * _WIDTH)).cast("i")

    def publish(self, connections: int) -> None:
        self._counts[self._own] = connections

    def least_of_others(self) -> int:
        """With one worker there are none: its own."""
        return min([n for worker, n in enumerate(self._counts) if worker != self._own] or [self._counts[self._own]])  # fmt: skip
