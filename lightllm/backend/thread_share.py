"""As many threads as there are cores for them: a round that several threads share waits for the one whose core is taken.

Each kernel's threads wait for each other, so one that loses its core for a time slice, milliseconds, stops all: beside a process that
takes half of two cores, two threads were slower than one. How long threads stood ready without a core is what Linux tells
(`schedstat`); where that is much, fewer are used, and from time to time one more is tried.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch

_WINDOW = 0.25
"""Seconds over which it is measured."""
_TAKEN, _FREE = 0.35, 0.1
"""Of a core: what all threads together stood waiting for one, in a window."""
_BUSY = 0.5
"""Of a window: threads that ran or waited for less are not those that compute."""
_WINDOWS = 2
"""One after the other, before threads are given up."""
_FIRST_PAUSE, _LONGEST_PAUSE = 4.0, 64.0
"""Seconds until one more is tried; twice as long each time that it was in vain."""

Times = dict[str, tuple[int, int]]
"""Of each of the process's threads: nanoseconds for which it ran, and for which it waited for a core."""


def thread_times(folder: Path = Path("/proc/self/task")) -> Times:
    """Empty where the system does not tell."""
    found: Times = {}
    for task in folder.glob("*/schedstat"):
        with suppress(OSError, ValueError):  # a thread that has ended meanwhile
            ran, waited, _ = task.read_text().split()
            found[task.parent.name] = int(ran), int(waited)
    return found


class ThreadShare:
    """Of the thread that asks for rounds."""

    def __init__(
        self,
        most: int,
        times: Callable[[], Times] = thread_times,
        clock: Callable[[], float] = time.monotonic,
        use: Callable[[int], None] = torch.set_num_threads,
    ) -> None:
        """most: threads that are used where nothing takes their cores; use: has so many compute from then on."""
        self.threads = self._most = most
        self._times, self._clock, self._use = times, clock, use
        self._before, self._began = times(), clock()
        self._taken_windows = 0
        self._pause, self._next_try = _FIRST_PAUSE, 0.0

    def adapt(self) -> None:
        """Between two rounds."""
        now = self._clock()
        if now - self._began < _WINDOW:
            return
        lost = self._lost(now)
        if lost is None:
            return
        self._taken_windows = self._taken_windows + 1 if lost > _TAKEN else 0
        if self._taken_windows >= _WINDOWS and self.threads > 1:
            tried = now < self._next_try + 2 * _WINDOWS * _WINDOW
            self._pause = min(2 * self._pause, _LONGEST_PAUSE) if tried else _FIRST_PAUSE
            self._next_try = now + self._pause
            self._change(max(1, self.threads - math.ceil(lost)))
        elif self.threads < self._most and lost < _FREE and now >= self._next_try:
            self._next_try = now
            self._change(self.threads + 1)

    def _lost(self, now: float) -> float | None:
        """Cores that the computing threads stood waiting for since the last window began; None: little was computed."""
        seconds, self._began = now - self._began, now
        before, self._before = self._before, self._times()
        waits = []
        for name, (ran, waited) in self._before.items():
            ran_before, waited_before = before.get(name, (ran, waited))
            wait = (waited - waited_before) / 1e9
            if wait + (ran - ran_before) / 1e9 >= _BUSY * seconds:
                waits.append(wait / seconds)
        return sum(waits) if waits else None

    def _change(self, threads: int) -> None:
        self._taken_windows, self.threads = 0, threads
        self._use(threads)
