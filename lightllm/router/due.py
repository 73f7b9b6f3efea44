"""Since when the Router waits for the others: the Model Backends for a round, the Detokenizer for an echo.

The times go into the snapshot; `ipc.stalls` judges them. A clock starts when there is something to wait for, so an idle
server never looks like one that hangs.
"""

from __future__ import annotations

from lightllm.protocol.messages import Echo

ECHO_SECONDS = 1.0
"""Least time between two echoes; none is sent while nothing else is."""


class Due:
    """Times are `time.monotonic()` seconds; 0: nothing is waited for."""

    def __init__(self) -> None:
        self.round_since = 0.0
        self.text_since = 0.0
        self._number = 0
        self._last_echo = float("-inf")
        self._text_sent = False

    def work(self, there_is: bool, now: float) -> None:
        """Whether requests are there or rounds are in flight: then a result must come."""
        if not there_is:
            self.round_since = 0.0
        elif not self.round_since:
            self.round_since = now

    def round_came(self, now: float) -> None:
        """The next round has its own time, also if it was handed out long ago: rounds run one after the other."""
        self.round_since = now

    def text_sent(self) -> None:
        """Something else than an echo was sent to the Detokenizer."""
        self._text_sent = True

    def next_echo(self, now: float) -> Echo | None:
        """What is to be sent to the Detokenizer now, one at a time."""
        if self.text_since or not self._text_sent or now - self._last_echo < ECHO_SECONDS:
            return None
        self._text_sent = False
        self._number += 1
        self.text_since = self._last_echo = now
        return Echo(self._number)

    def echo_came(self, echo: Echo) -> None:
        if echo.number == self._number:
            self.text_since = 0.0
