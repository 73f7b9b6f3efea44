"""Says in the log which process hangs, and when it goes on. It neither ends nor restarts it."""

from __future__ import annotations

import logging

from lightllm.ipc.snapshot import SnapshotReader
from lightllm.ipc.stalls import Stall, find_stall

log = logging.getLogger("supervisor")


class StallWatch:
    """To be asked every `poll_seconds`; one line when a process has made no progress for `limit` seconds, one when it does."""

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
