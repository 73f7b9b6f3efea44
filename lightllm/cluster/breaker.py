"""A circuit breaker: a worker that fails again and again gets no requests for a while, then one, then all again.

CLOSED ── `failures` within `window` ──> OPEN ── after `pause` ──> one trial: it ends well ──> CLOSED, badly ──> OPEN
"""

from __future__ import annotations

import dataclasses
from collections import deque


@dataclasses.dataclass(frozen=True)
class Limits:
    failures: int = 5
    window: float = 60.0
    """Seconds in which they count."""
    pause: float = 30.0
    """Seconds without requests."""


class Breaker:
    def __init__(self, limits: Limits | None = None, opened: set[Breaker] | None = None) -> None:
        """opened: the set that it is in while it is open."""
        self._limits = limits or Limits()
        self._all_open = set() if opened is None else opened
        self._failures: deque[float] = deque()
        self._opened: float | None = None
        self._trial: float | None = None
        """When the trial was let through."""

    def allows(self, now: float) -> bool:
        """Whether a request may be sent; does not count it."""
        if self._opened is None:
            return True
        # A trial whose end nobody told is forgotten after another pause.
        trying = self._trial is not None and now - self._trial < self._limits.pause
        return not trying and now - self._opened >= self._limits.pause

    def sending(self, now: float) -> None:
        """A request is sent."""
        if self._opened is not None:
            self._trial = now

    def succeeded(self) -> None:
        self._failures.clear()
        self._opened = self._trial = None
        self._all_open.discard(self)

    def failed(self, now: float) -> None:
        if self._opened is not None:
            if self._trial is not None:
                self._opened, self._trial = now, None
            return
        self._failures.append(now)
        while self._failures[0] < now - self._limits.window:
            self._failures.popleft()
        if len(self._failures) >= self._limits.failures:
            self._failures.clear()
            self._opened = now
            self._all_open.add(self)

    @property
    def is_open(self) -> bool:
        return self._opened is not None
