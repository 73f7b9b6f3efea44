"""Runs of neighbouring free slots, sorted by position and merged."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator


class FreeRuns:
    """Disjoint runs [start, end) that never touch each other. There are about as many as there are requests, so plain
    sorted lists beat any tree."""

    def __init__(self, capacity: int) -> None:
        self._starts = [0] if capacity else []
        self._ends = [capacity] if capacity else []

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return zip(self._starts, self._ends, strict=True)

    def add(self, start: int, end: int) -> None:
        """Returns a run, merging it with its neighbours."""
        if start == end:
            return
        i = bisect_left(self._starts, start)
        before = i > 0 and self._ends[i - 1] == start
        after = i < len(self._starts) and self._starts[i] == end
        if before and after:
            self._ends[i - 1] = self._ends[i]
            del self._starts[i], self._ends[i]
        elif before:
            self._ends[i - 1] = end
        elif after:
            self._starts[i] = start
        else:
            self._starts.insert(i, start)
            self._ends.insert(i, end)

    def best_fit(self, length: int) -> int | None:
        """Start of the smallest run with at least `length` slots; the first of equals."""
        best = best_length = None
        for start, end in zip(self._starts, self._ends, strict=True):
            found = end - start
            if found >= length and (best_length is None or found < best_length):
                best, best_length = start, found
                if found == length:
                    break
        return best

    def largest(self) -> tuple[int, int]:
        """(start, length) of the longest run, the first of equals; (0, 0) if nothing is free."""
        best = best_length = 0
        for start, end in zip(self._starts, self._ends, strict=True):
            if end - start > best_length:
                best, best_length = start, end - start
        return best, best_length

    def length_at(self, start: int) -> int:
        """Length of the run that begins exactly at `start`; 0 if none does."""
        i = bisect_left(self._starts, start)
        return self._ends[i] - start if i < len(self._starts) and self._starts[i] == start else 0

    def take(self, start: int, length: int) -> None:
        """Removes the first `length` slots of the run that begins at `start`."""
        i = bisect_left(self._starts, start)
        if start + length == self._ends[i]:
            del self._starts[i], self._ends[i]
        else:
            self._starts[i] = start + length
