"""Signals: what ends the launch while it starts, and later events of a selector (the handlers do nothing, Python writes
the numbers into a socket pair)."""

from __future__ import annotations

import signal
import socket
import sys
from types import FrameType
from typing import NoReturn

STOPS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
"""They ask for the end."""
_NO_MEANING = (signal.SIGUSR1, signal.SIGUSR2)
"""Their default action would end the process without a word."""


def end_at_signals() -> None:
    """From now until a `SignalPipe` takes over, a signal that asks for the end ends the process in order, with exit code
    0. Without a handler the first process of a container would not even notice it."""
    for number in _wanted(STOPS):
        signal.signal(number, _end)
    for number in _NO_MEANING:
        signal.signal(number, _nothing)


class SignalPipe:
    """Main thread only. From `__enter__` on signals arrive through `read()`; after `__exit__`, when the process is about
    to end, they mean nothing more."""

    def __init__(self, reloads: bool = False) -> None:
        """reloads: SIGHUP has files read anew; then it is taken even if it was ignored, for it ends nothing."""
        self._also = (signal.SIGHUP,) if reloads else ()
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
        signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        for number in (*_wanted(STOPS), *_NO_MEANING, signal.SIGCHLD, *self._also):
            signal.signal(number, _nothing)
        return self

    def __exit__(self, *error: object) -> None:
        signal.set_wakeup_fd(-1)
        self._reader.close()
        self._writer.close()


def _wanted(numbers: tuple[signal.Signals, ...]) -> list[signal.Signals]:
    """An ignored SIGHUP stays ignored: that is what nohup asks for."""
    return [s for s in numbers if s != signal.SIGHUP or signal.getsignal(s) != signal.SIG_IGN]


def _nothing(number: int, frame: FrameType | None) -> None:
    """The default action would end the process; the wake-up descriptor does the work."""


def _end(number: int, frame: FrameType | None) -> NoReturn:
    sys.exit(0)
