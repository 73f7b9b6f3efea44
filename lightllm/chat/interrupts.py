"""Ctrl-C while an answer comes."""

from __future__ import annotations

import signal
import threading
from types import FrameType


class Interrupts:
    """A context in which an interrupt counts, also where its exception is lost: one that is raised within a callback or a finalizer of
    a library is printed or dropped there, and the answer would go on. `check` raises it again."""

    def __init__(self) -> None:
        self._asked = False

    def __enter__(self) -> Interrupts:
        self._is_main = threading.current_thread() is threading.main_thread()
        if self._is_main:
            self._former = signal.signal(signal.SIGINT, self._interrupt)
        return self

    def __exit__(self, *error: object) -> None:
        if self._is_main:
            signal.signal(signal.SIGINT, self._former)

    def check(self) -> None:
        """Raises `KeyboardInterrupt` after one."""
        if self._asked:
            raise KeyboardInterrupt

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        self._asked = True
        raise KeyboardInterrupt
