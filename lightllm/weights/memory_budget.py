"""Bounds what the copies that loading makes take together, however many threads make them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class MemoryBudget:
    """`with budget(nbytes):` waits until all copies together are no larger than `limit` bytes; one alone may be."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._taken = 0
        self._changed = threading.Condition()

    @contextmanager
    def __call__(self, nbytes: int) -> Iterator[None]:
        with self._changed:
            self._changed.wait_for(lambda: not self._taken or self._taken + nbytes <= self.limit)
            self._taken += nbytes
        try:
            yield
        finally:
            with self._changed:
                self._taken -= nbytes
                self._changed.notify_all()
