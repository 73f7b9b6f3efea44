"""What the Supervisor judges by the Router's snapshot: whether a draining server has finished, and which process hangs."""

from __future__ import annotations

import logging
import math

from lightllm.config import ServerConfig
from lightllm.ipc.beats import read_beats
from lightllm.ipc.runtime_dir import RuntimeDir
from lightllm.ipc.snapshot import Snapshot, SnapshotReader
from lightllm.ipc.stalls import Stall, find_stall, round_seconds

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
        return _load(self._reader.read())

    def shorten(self, now: float, grace: float) -> None:
        """Time is up `grace` seconds from the first call at the latest."""
        if not self._shortened:
            self._shortened = True
            self._deadline = min(self._deadline, now + grace)

    def finished(self, now: float) -> bool:
        if now >= self._deadline:
            return True
        snapshot = self._reader.read()
        if any(_load(snapshot)) or not snapshot.ready or snapshot.unheard:
            self._empty_since = None  # a Router that has just begun has yet to be told what runs
        elif self._empty_since is None:
            self._empty_since = now
        return self._empty_since is not None and now - self._empty_since >= self.settle_seconds


def _load(snapshot: Snapshot) -> tuple[int, int]:
    return snapshot.running, snapshot.waiting + snapshot.paused


_FROZEN_SECONDS = 5.0
"""The watch is asked every second. Whatever keeps it for so long keeps the others too."""


class StallWatch:
    """Finds the process that hangs; to be asked every `poll_seconds`. Says in the log when one stands still, and when it goes
    on."""

    poll_seconds = 1.0

    def __init__(self, runtime: RuntimeDir, config: ServerConfig) -> None:
        self._reader = SnapshotReader(runtime.snapshot_file)
        self._folder = runtime.beats_dir
        self._round_seconds = round_seconds(config)
        self._limit = config.round_timeout
        self._stall: Stall | None = None
        self._checked = math.inf
        self._resumed = 0.0

    def check(self, now: float) -> Stall | None:
        """The one that is to be ended. `now`: `time.monotonic()`. When the watch itself has not run for a while, the whole machine
        or container stood still: nothing that was due meanwhile counts as late."""
        if now - self._checked > _FROZEN_SECONDS:
            log.warning("nothing ran for %.0f s", now - self._checked)
            self._resumed = now
        self._checked = now
        beats = {process: max(beat, self._resumed) for process, beat in read_beats(self._folder).items()}
        snapshot = self._reader.read()
        if snapshot.round_due_since:
            snapshot.round_due_since = max(snapshot.round_due_since, self._resumed)
        stall = find_stall(snapshot, beats, now, self._round_seconds)
        before, self._stall = self._stall, stall
        if before is not None and (stall is None or stall.process != before.process):
            log.warning("%s makes progress again", before.process)
        if stall is not None and (before is None or stall.process != before.process):
            log.error(
                "%s has made no progress for %.0f s: /health answers 503 until it does",
                stall.process,
                stall.seconds,
            )
        return stall if stall is not None and stall.seconds > self._limit else None
