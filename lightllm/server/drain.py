"""What the Supervisor judges by the Router's snapshot: whether a draining server has finished."""

from __future__ import annotations

from lightllm.ipc.snapshot import Snapshot, SnapshotReader


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
