"""How an Http worker sees the server as a whole: the Router's snapshot, and whether requests can be taken."""

from __future__ import annotations

import math
import time
from pathlib import Path

from lightllm.errors import ServerOverloaded, ServerStopping
from lightllm.ipc.snapshot import Snapshot, SnapshotReader
from lightllm.ipc.stalls import Stall, find_stall

_NOT_READY = Snapshot()


class ServerView:
    """Reads shared memory; cheap enough for every request."""

    def __init__(self, snapshot_file: Path, stall_seconds: float = math.inf) -> None:
        """stall_seconds: how long a process may take before the server calls itself unhealthy."""
        self.draining = False
        """Set when the server is to stop: nothing new is taken."""
        self._file = snapshot_file
        self._stall_seconds = stall_seconds
        self._reader: SnapshotReader | None = None

    def snapshot(self) -> Snapshot:
        """The Router's state; all zero before it has written one."""
        if self._reader is None:
            try:
                self._reader = SnapshotReader(self._file)
            except FileNotFoundError:  # not there yet
                return _NOT_READY
        return self._reader.read()

    def require_ready(self) -> Snapshot:
        """The snapshot; raises `ServerStopping` or `ServerOverloaded` while the server cannot take requests."""
        if self.draining:
            raise ServerStopping("the server is shutting down and takes no new requests", retry_after=5)
        snapshot = self.snapshot()
        if not snapshot.ready:
            raise ServerOverloaded("the model is still loading, try again soon", retry_after=1)
        return snapshot

    def healthy(self) -> bool:
        """Whether requests are taken, and every process that is waited for makes progress."""
        return not self.draining and bool(self.snapshot().ready) and self.stall() is None

    def stall(self) -> Stall | None:
        """The process that makes no progress."""
        return find_stall(self.snapshot(), time.monotonic(), self._stall_seconds)
