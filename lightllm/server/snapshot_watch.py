"""What the Supervisor judges by the Router's snapshot: whether a draining server has finished, and which process hangs."""

from __future__ import annotations

import logging

from lightllm.ipc.snapshot import SnapshotReader
from lightllm.ipc.stalls import Stall, find_stall

log = logging.getLogger("supervisor")


class Drain:
    """Finished: nothing waits and nothing runs, or time is up. Times are `time.monotonic()` seconds.

    A request may be on its way from an Http Server to the Router when the drain begins, so the server counts as
    finished only after it has been empty for `settle_seconds` at a stretch.
    """

    settle_seconds = 0.2
    poll_seconds = 0.05

    def __init__(self, reader: SnapshotReader, now: float, grace: float) -> None:
        self._reader = reader
        self._deadline = now + grace
        self._shortened = False
        self._empty_since: float | None = None

    @property
    def load(self) -> tuple[int, int]:
        """(running, waiting) requests."""
        snapshot = self._reader.read()
        return snapshot.running, snapshot.waiting + snapshot.paused

    def shorten(self, now: float, grace: float) -> None:
        """Time is up `grace` seconds from the first call at the latest."""
        if not self._shortened:
            self._shortened = True
            self._deadline = min(self._deadline, now + grace)

    def finished(self, now: float) -> bool:
        if now >= self._deadline:
            return True
        if any(self.load):
            self._empty_since = None
        elif self._empty_since is None:
            self._empty_since = now
        return self._empty_since is not None and now - self._empty_since >= self.settle_seconds


class StallWatch:
    """Says in the log which process hangs, and neither ends nor restarts it. To be asked every `poll_seconds`; one line when a process has made no progress for `limit` seconds, one when it does."""

    poll_seconds = 1.0

    def __init__(self, reader: SnapshotReader, limit: float) -> None:
        self._reader = reader
        self._limit = limit
        self._stall: Stall | None = None

    def check(self, now: float) -> None:
        """`now`: `time.monotonic()`."""
        stall = find_stall(self._reader.read(), now, self._limit)
        before, self._stall = self._stall, stall
        if before is not None and (stall is None or stall.process != before.process):
            log.warning("%s makes progress again, after %.0f s", before.process, before.seconds)
        if stall is not None and (before is None or stall.process != before.process):
            log.error(
                "%s has made no progress for %.0f s: /health answers 503 until it does",
                stall.process,
                stall.seconds,
            )
