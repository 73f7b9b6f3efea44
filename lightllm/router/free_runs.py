"""Runs of neighbouring free slots, merged, and found by their place or their length."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator

_SHIFT = 40
_START = (1 << _SHIFT) - 1


class FreeRuns:
    """Disjoint runs [start, end) that never touch each other; all but `__iter__` O(log runs)."""

    def __init__(self, capacity: int) -> None:
        self.total = 0
        """Slots in all runs."""
        self._end_of: dict[int, int] = {}
        self._start_of: dict[int, int] = {}
        self._by_length: list[int] = []
        """Sorted: length << 40 | start of each."""
        self.add(0, capacity)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """In the order of their places."""
        return iter(sorted(self._end_of.items()))

    @property
    def longest(self) -> int:
        """Slots of the longest run; 0 if nothing is free."""
        return self._by_length[-1] >> _SHIFT if self._by_length else 0

    def add(self, start: int, end: int) -> None:
        """Returns a run, merging it with its neighbours."""
        if start == end:
            return
        self.total += end - start
        before = self._start_of.pop(start, None)
        if before is not None:
            self._forget(before, start)
            start = before
        after = self._end_of.pop(end, None)
        if after is not None:
            self._forget(end, after)
            del self._start_of[after]
            end = after
        self._end_of[start] = end
        self._start_of[end] = start
        insort(self._by_length, (end - start) << _SHIFT | start)

    def length_at(self, start: int) -> int:
        """Length of the run that begins exactly at `start`; 0 if none does."""
        return self._end_of.get(start, start) - start

    def take_at(self, start: int, length: int, align: int = 1) -> int:
        """Removes the first `length` slots of the run that begins at `start`, and what follows up to a multiple of
        `align`; returns the end of what was removed."""
        end = self._end_of.pop(start)
        self._forget(start, end)
        cut = min(end, -(-(start + length) // align) * align)
        self.total -= cut - start
        if cut == end:
            del self._start_of[end]
        else:
            self._end_of[cut] = end
            self._start_of[end] = cut
            insort(self._by_length, (end - cut) << _SHIFT | cut)
        return cut

    def take_fitting(self, length: int) -> tuple[int, int] | None:
        """[start, end) of `length` slots from the smallest run that has them; None if none has."""
        place = bisect_left(self._by_length, length << _SHIFT)
        if place == len(self._by_length):
            return None
        start = self._by_length[place] & _START
        return start, self.take_at(start, length)

    def take_longest(self, total: int, align: int = 1) -> list[tuple[int, int]]:
        """`total` slots as runs, the longest ones first, the last one as `take_at` cuts it; all there are if they are
        fewer."""
        runs = []
        while total > 0 and self._by_length:
            key = self._by_length[-1]
            start = key & _START
            end = self.take_at(start, min(key >> _SHIFT, total), align)
            runs.append((start, end))
            total -= end - start
        return runs

    def take_pieces(self, count: int, size: int) -> list[tuple[int, int]]:
        """`count` runs of `size` slots or less, cut at multiples of `size`, from the longest ones; fewer if there are
        not so many slots."""
        pieces: list[tuple[int, int]] = []
        while len(pieces) < count and self._by_length:
            start = self._by_length.pop() & _START
            end = self._end_of.pop(start)
            del self._start_of[end]
            self.total -= end - start
            while start < end and len(pieces) < count:
                cut = min(end, (start // size + 1) * size)
                pieces.append((start, cut))
                start = cut
            self.add(start, end)
        return pieces

    def _forget(self, start: int, end: int) -> None:
        del self._by_length[bisect_left(self._by_length, (end - start) << _SHIFT | start)]
