"""Signals as events of a selector: the handlers do nothing, Python writes the numbers into a socket pair."""

from __future__ import annotations

import signal
import socket
from types import FrameType

_HANDLED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD)


class SignalPipe:
    """Main thread only. Between `__enter__` and `__exit__` the handled signals arrive through `read()`."""

    def __init__(self) -> None:
        self._reader, self._writer = socket.socketpair()
        self._reader.setblocking(False)
        self._writer.setblocking(False)

    def fileno(self) -> int:
        return self._reader.fileno()

    def read(self) -> list[signal.Signals]:
        """The signals since the last call, in order."""
        try:
            return [signal.Signals(number) for number in self._reader.recv(4096)]
        except BlockingIOError:
            return []

    def __enter__(self) -> "SignalPipe":
        self._old_wakeup = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        # An ignored SIGHUP stays ignored: that is what nohup asks for.
        handled = [s for s in _HANDLED if s != signal.SIGHUP or signal.getsignal(s) != signal.SIG_IGN]
        self._old = {number: signal.signal(number, _nothing) for number in handled}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._old_wakeup)
        self._reader.close()
        self._writer.close()


def _nothing(number: int, frame: FrameType | None) -> None:
    """The default action would end the process; the wake-up descriptor does the work."""
