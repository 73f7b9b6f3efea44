"""How an Http worker sees the server as a whole: the Router's snapshot, and whether requests can be taken."""

from __future__ import annotations

import time
from pathlib import Path

from lightllm.errors import ServerOverloaded, ServerStopping
from lightllm.ipc.snapshot import Snapshot, SnapshotReader

_NOT_READY = Snapshot()
STALL_SECONDS = 120.0
"""Requests run, but no round has finished for so long: the server calls itself unhealthy."""


class ServerView:
    """Reads shared memory; cheap enough for every request."""

    def __init__(self, snapshot_file: Path) -> None:
        self.draining = False
        """Set when the server is to stop: nothing new is taken."""
        self._file = snapshot_file
        self._reader: SnapshotReader | None = None

    def snapshot(self) -> Snapshot:
        """The Router's state; all zero before it has written one."""
        if self._reader is None:
            try:
                self._reader = SnapshotReader(self._file)
            except (FileNotFoundError, ValueError):  # not there yet, or just being created
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
        """Whether requests are taken and, if some run, the model makes progress."""
        snapshot = self.snapshot()
        if self.draining or not snapshot.ready:
            return False
        latest = max(snapshot.heartbeat, snapshot.last_round)
        return not (snapshot.running and latest > 0 and time.time() - latest > STALL_SECONDS)
