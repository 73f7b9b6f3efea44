"""When a draining server has finished: nothing waits and nothing runs, or time is up."""

from __future__ import annotations

from lightllm.ipc.snapshot import SnapshotReader


class Drain:
    """Judges by the Router's snapshot. Times are `time.monotonic()` seconds.

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
