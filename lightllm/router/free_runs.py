"""Runs of neighbouring free slots, as arrays: in a full memory most are a few slots long, and there are thousands."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

_NO_ROOM = np.iinfo(np.int64).max


class FreeRuns:
    """Disjoint runs [start, end), merged, in the order of their places. What is added is sorted in when a run is asked for;
    who asks for any slots gets them from what has not been sorted in yet, at no cost."""

    def __init__(self, capacity: int) -> None:
        self.total = capacity
        """Slots in all runs."""
        self._starts = np.zeros(1 if capacity else 0, dtype=np.int64)
        self._ends = np.full_like(self._starts, capacity)
        self._added: list[tuple[np.ndarray, np.ndarray]] = []
        self._added_runs: list[tuple[int, int]] = []
        self._added_slots: list[np.ndarray] = []
        self._longest = capacity
        """No run has more slots."""
        self._exact = True
        """`_longest` is that of a run."""

    def __iter__(self) -> Iterator[tuple[int, int]]:
        self._settle()
        return zip(self._starts.tolist(), self._ends.tolist(), strict=True)

    def add(self, starts: np.ndarray, ends: np.ndarray) -> None:
        """Returns runs; int [n] each, in any order."""
        self.total += int((ends - starts).sum())
        self._added.append((starts, ends))

    def add_slots(self, slots: np.ndarray) -> None:
        """Returns distinct slots; int [n], in any order."""
        if len(slots):
            self.total += len(slots)
            self._added_slots.append(slots)

    def add_run(self, start: int, end: int) -> None:
        """Returns a run, which may be empty."""
        if start < end:
            self.total += end - start
            self._added_runs.append((start, end))

    def longest(self) -> int:
        """Slots of the longest run; 0 if nothing is free."""
        self._settle()
        if not self._exact:
            self._longest = int((self._ends - self._starts).max()) if len(self._starts) else 0
            self._exact = True
        return self._longest

    def take_fitting(self, length: int) -> int | None:
        """Start of `length` slots from the smallest run that has them; None if none has."""
        self._settle()
        if length > self._longest:
            return None
        lengths = self._ends - self._starts
        spare = np.where(lengths >= length, lengths - length, _NO_ROOM)
        place = int(spare.argmin()) if len(spare) else 0
        if not len(spare) or lengths[place] < length:
            self._longest, self._exact = length - 1, False
            return None
        start = int(self._starts[place])
        self._starts[place] += length
        self._taken(length)
        return start

    def take_after(self, place: int, want: int) -> int:
        """Takes up to `want` slots from the run that begins exactly at `place` (0: nowhere); how many there were."""
        if not place:
            return 0
        self._settle()
        at = int(self._starts.searchsorted(place))
        if at == len(self._starts) or self._starts[at] != place:
            return 0
        taken = min(want, int(self._ends[at]) - place)
        self._starts[at] += taken
        self._taken(taken)
        return taken

    def take_following(self, places: np.ndarray, wants: np.ndarray, align: int) -> np.ndarray:
        """int64 [n]: slots taken from the runs that begin exactly at `places` (int [n], distinct; 0: nowhere). All of `wants`
        where the run has them, else up to the next multiple of `align`; 0 where no run begins."""
        self._settle()
        if not len(self._starts):
            return np.zeros(len(places), dtype=np.int64)
        at = np.minimum(np.searchsorted(self._starts, places), len(self._starts) - 1)
        there = (self._starts[at] == places) & (places > 0)
        lengths = self._ends[at] - places
        taken = np.where(wants <= lengths, wants, np.minimum(lengths, align - places % align)) * there
        if there.any():
            self._starts[at[there]] += taken[there]
            self._taken(int(taken.sum()))
        return taken

    def take_first(self, count: int, align: int) -> tuple[np.ndarray, int]:
        """(int64 [count]: the free slots with the lowest numbers, end of what was taken: what follows the last of them
        is taken up to a multiple of `align`). There must be so many."""
        self._settle()
        until = np.cumsum(self._ends - self._starts)
        last = int(np.searchsorted(until, count))
        lengths = self._ends[: last + 1] - self._starts[: last + 1]
        lengths[last] -= until[last] - count
        slots = _expand(self._starts[: last + 1], lengths)
        cut = int(min(self._ends[last], -(-(slots[-1] + 1) // align) * align))
        self._drop(last, cut)
        self.total -= count + cut - int(slots[-1]) - 1
        return slots, cut

    def take_any(self, count: int) -> np.ndarray:
        """int [count]: slots wherever they are, those first that were returned last. There must be so many."""
        parts = []
        while count and self._added_slots:
            slots = self._added_slots.pop()
            if len(slots) > count:
                self._added_slots.append(slots[count:])
                slots = slots[:count]
            parts.append(slots)
            count -= len(slots)
            self.total -= len(slots)
        if count:
            parts.append(self.take_first(count, 1)[0])
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def take_pieces(self, count: int, size: int) -> tuple[np.ndarray, np.ndarray]:
        """`count` runs (starts, ends) of at most `size` slots with the lowest numbers, cut at multiples of `size`. There
        must be `count * size` slots."""
        self._settle()
        first_block = self._starts // size
        blocks = (self._ends - 1) // size - first_block + 1
        last = int(np.searchsorted(np.cumsum(blocks), count))
        run = np.repeat(np.arange(last + 1), blocks[: last + 1])[:count]
        block = _expand(first_block[: last + 1], blocks[: last + 1])[:count]
        starts = np.maximum(self._starts[run], block * size)
        ends = np.minimum(self._ends[run], (block + 1) * size)
        self._drop(last, int(ends[-1]))
        self.total -= int((ends - starts).sum())
        return starts, ends

    def _drop(self, last: int, cut: int) -> None:
        """Removes all runs before number `last`, and of that one what lies before `cut`."""
        self._starts, self._ends = self._starts[last:].copy(), self._ends[last:].copy()
        self._starts[0] = cut
        self._taken(0)

    def _taken(self, count: int) -> None:
        self.total -= count
        self._exact = False
        left = self._starts < self._ends
        if not left.all():
            self._starts, self._ends = self._starts[left], self._ends[left]

    def _settle(self) -> None:
        if self._added_slots:
            slots = np.sort(np.concatenate(self._added_slots))
            self._added_slots.clear()
            last = np.flatnonzero(slots[1:] - slots[:-1] != 1)
            self._added.append(
                (np.append(slots[:1], slots[last + 1]), np.append(slots[last], slots[-1:]) + 1)
            )
        if self._added_runs:
            runs = np.array(self._added_runs)
            self._added_runs.clear()
            self._added.append((runs[:, 0], runs[:, 1]))
        if not self._added:
            return
        starts = np.concatenate([self._starts, *(starts for starts, _ in self._added)])
        ends = np.concatenate([self._ends, *(ends for _, ends in self._added)])
        self._added.clear()
        order = np.argsort(starts, kind="stable")
        starts, ends = starts[order], ends[order]
        self._longest, self._exact = self.total, False
        apart = np.ones(len(starts) + 1, dtype=bool)
        np.not_equal(starts[1:], ends[:-1], out=apart[1:-1])
        self._starts, self._ends = starts[apart[:-1]], ends[apart[1:]]


def _expand(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """int64 [sum of lengths]: start, start + 1, ... of each run."""
    before = np.cumsum(lengths) - lengths
    return np.arange(int(lengths.sum())) + np.repeat(starts - before, lengths)
