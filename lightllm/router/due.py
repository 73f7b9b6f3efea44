"""Since when the Router waits for the Model Backends. The time goes into the snapshot; `ipc.stalls` judges it."""

from __future__ import annotations


class Due:
    """A clock that starts when there is something to wait for, so that an idle server never looks like one that hangs."""

    def __init__(self) -> None:
        self.round_since = 0.0
        """`time.monotonic()`; 0: nothing is waited for."""

    def work(self, there_is: bool, now: float) -> None:
        """Whether requests are there or rounds are in flight: then a result must come."""
        if not there_is:
            self.round_since = 0.0
        elif not self.round_since:
            self.round_since = now

    def round_came(self, now: float) -> None:
        """The next round has its own time, also if it was handed out long ago: rounds run one after the other."""
        self.round_since = now
