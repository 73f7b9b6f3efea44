"""Comments in a stream that has nothing to say: proxies drop connections that carry nothing for a minute or less."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

COMMENT = b": keep-alive\n\n"
"""A server-sent event without data: clients take no notice of it (HTML standard, 9.2.6)."""


class KeepAlive:
    """Notices that a stream has carried nothing for a while, and wakes its handler. One timer a stream, which moves on only
    when it fires, so that a token costs no more than a look at the clock."""

    def __init__(self, wake: Callable[[], None], seconds: float) -> None:
        """wake: lets the stream's handler look at `due`; seconds: of silence, 0: for ever."""
        self.due = False
        """A comment should be sent."""
        self._wake = wake
        self._seconds = seconds
        self._loop = asyncio.get_running_loop()
        self._last = self._loop.time()
        self._timer = self._loop.call_later(seconds, self._look) if seconds else None

    def sent(self) -> None:
        """Something was sent."""
        self.due = False
        self._last = self._loop.time()

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _look(self) -> None:
        now = self._loop.time()
        left = self._last + self._seconds - now
        if left <= 0:
            self.due = True
            self._wake()
            left = self._seconds
        self._timer = self._loop.call_later(left, self._look)
