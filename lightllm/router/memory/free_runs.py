"""Runs of neighbouring free slots, as arrays: in a full memory most are a few slots long, and there are thousands.

To sort in what is given back costs as much as there are runs, so it waits until the others do not suffice. Blocks, of which
rows that grow side by side want one each every now and then, are cut for several rounds at once.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

CUT_AHEAD, CUT_LEAST = 8, 32
"""Blocks are cut for so many rounds that want as many as this one, and at least so many, if that takes no more than a quarter of
what is free."""
_NONE = np.zeros(0, dtype=np.int64)


class FreeRuns:
    """Disjoint runs [start, end): those that are sorted in, merged and in the order of their places; those that were added
    since; and the blocks that were cut."""

    def __init__(self, capacity: int) -> None:
        self.total = capacity
        """Slots in all runs."""
        self._starts = np.zeros(1 if capacity else 0, dtype=np.int64)
        self._ends = np.full_like(self._starts, capacity)
        self.no_longer_than = capacity
        """No run that is sorted in has more slots."""
        self._exact = True
        """One of them has so many."""
        self._added: list[tuple[np.ndarray, np.ndarray]] = []
        self._added_runs: list[tuple[int, int]] = []
        self._added_slots: list[np.ndarray] = []
        self._unsorted = 0
        """Slots in these three."""
        self._blocks = _NONE
        """Starts of those that have been cut, int64 [n]."""
        self._block_size = 1
        """Slots of each."""

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """All of them, merged; changes nothing."""
        added = [*self._as_runs(), (self._blocks, self._blocks + self._block_size)]
        starts, ends = _merged(self._starts, self._ends, added)
        return zip(starts.tolist(), ends.tolist(), strict=True)

    @property
    def uncut(self) -> int:
        """Slots that are in no block."""
        return self.total - len(self._blocks) * self._block_size

    def add(self, starts: np.ndarray, ends: np.ndarray) -> None:
        """Returns runs; int [n] each, in any order."""
        self._added.append((starts, ends))
        self._more(int((ends - starts).sum()))

    def add_slots(self, slots: np.ndarray) -> None:
        """Returns distinct slots; int [n], in any order."""
        if len(slots):
            self._added_slots.append(slots)
            self._more(len(slots))

    def add_run(self, start: int, end: int) -> None:
        """Returns a run, which may be empty."""
        if start < end:
            self._added_runs.append((start, end))
            self._more(end - start)

    def longest(self) -> int:
        """Slots of the longest run; 0 if nothing is free but blocks."""
        self._settle()
        if not self._exact:
            self.no_longer_than = int((self._ends - self._starts).max(initial=0))
            self._exact = True
        return self.no_longer_than

    def take_fitting(self, length: int, align: int = 1) -> tuple[int, int] | None:
        """(start, end) of `length` slots from the smallest run that has them, and what follows them up to the next multiple of
        `align`; None if no run has so many."""
        if 8 * self._unsorted >= self.uncut or length > self.no_longer_than:
            self._settle_for(length)
        if length > self.no_longer_than:
            return None
        lengths = self._ends - self._starts
        fitting = (lengths >= length).nonzero()[0]
        if not len(fitting):
            self.no_longer_than, self._exact = length - 1, False
            return self.take_fitting(length, align) if self._settle_for(length) else None
        place = fitting[lengths[fitting].argmin()]
        start, last = int(self._starts[place]), int(self._ends[place])
        end = min(-(-(start + length) // align) * align, last)
        self._starts[place] = end
        self._taken(end - start, some_whole=end == last)
        return start, end

    def take_after(self, place: int, want: int) -> int:
        """Takes up to `want` slots from the run that begins exactly at `place` (0: nowhere); how many there were."""
        if not place:
            return 0
        at = int(self._starts.searchsorted(place))
        if at == len(self._starts) or self._starts[at] != place:
            return self.take_after(place, want) if self._settle_for(want) else 0
        taken = min(want, int(self._ends[at]) - place)
        self._starts[at] += taken
        self._taken(taken)
        return taken

    def take_following(self, places: np.ndarray, wants: np.ndarray, align: int) -> np.ndarray:
        """int64 [n]: slots taken from the runs that begin exactly at `places` (int [n], distinct; 0: nowhere). All of `wants`
        where the run has them, else up to the next multiple of `align`; 0 where no run is known to begin."""
        if not len(self._starts):
            return np.zeros(len(places), dtype=np.int64)
        at = np.minimum(self._starts.searchsorted(places), len(self._starts) - 1)
        there = ((self._starts[at] == places) & (places > 0)).nonzero()[0]
        taken = np.zeros(len(places), dtype=np.int64)
        if len(there):
            at, places, wants = at[there], places[there], wants[there]
            lengths = self._ends[at] - places
            some = np.where(wants <= lengths, wants, np.minimum(lengths, align - places % align))
            taken[there] = some
            self._starts[at] += some
            self._taken(int(some.sum()))
        return taken

    def take_first(self, count: int, align: int) -> tuple[np.ndarray, int]:
        """(int64 [count]: the free slots with the lowest numbers, end of what was taken: what follows the last of them
        is taken up to a multiple of `align`). There must be so many."""
        if self.uncut < count:
            self.join_blocks()
        self._settle()
        until = np.cumsum(self._ends - self._starts)
        last = int(np.searchsorted(until, count))
        lengths = self._ends[: last + 1] - self._starts[: last + 1]
        lengths[last] -= until[last] - count
        slots = _expand(self._starts[: last + 1], lengths)
        cut = int(min(self._ends[last], -(-(slots[-1] + 1) // align) * align))
        self._starts, self._ends = self._starts[last:].copy(), self._ends[last:].copy()
        self._starts[0] = cut
        self._taken(count + cut - int(slots[-1]) - 1)
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
            self._unsorted -= len(slots)
        if count:
            parts.append(self.take_first(count, 1)[0])
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    # -- blocks

    def has_blocks(self, count: int) -> bool:
        return len(self._blocks) >= count

    def take_blocks(self, count: int) -> tuple[np.ndarray, int]:
        """(starts, int64 [count]; slots of each) of blocks that have been cut."""
        blocks, self._blocks = self._blocks[:count], self._blocks[count:]
        self.total -= count * self._block_size
        return blocks, self._block_size

    def cut_blocks(self, count: int, size: int) -> None:
        """Cuts `count` blocks of `size` slots (a power of two), at its multiples, and some for later; of half as many slots,
        and so on, where there are not so many of these. There are none yet, and at least `count` slots."""
        self._settle()
        while True:
            first = -(-self._starts // size)
            whole = np.maximum(self._ends // size - first, 0)
            until = np.cumsum(whole)
            if until[-1] >= count:
                break
            size //= 2
        ahead = max(count, min(max(CUT_AHEAD * count, CUT_LEAST), self.total // (4 * size), int(until[-1])))
        last = int(until.searchsorted(ahead))
        whole[last] -= until[last] - ahead
        cut = whole[: last + 1].nonzero()[0]
        first, whole = first[cut], whole[cut]
        self._blocks, self._block_size = _expand(first, whole) * size, size
        before, starts = self._starts[cut], first * size
        self._added.append((before[before < starts], starts[before < starts]))
        self._unsorted += int((starts - before).sum())
        self._starts[cut] = starts + whole * size
        self._taken(0)

    def join_blocks(self) -> None:
        """There are no blocks any more."""
        if len(self._blocks):
            self._added.append((self._blocks, self._blocks + self._block_size))
            self._unsorted += len(self._blocks) * self._block_size
            self._blocks = _NONE

    # -- sorting in

    def _more(self, count: int) -> None:
        self.total += count
        self._unsorted += count

    def _taken(self, count: int, some_whole: bool = True) -> None:
        """So many slots are no longer in the runs, of which some may be used up."""
        self.total -= count
        self._exact = False
        if some_whole:
            left = self._starts < self._ends
            self._starts, self._ends = self._starts[left], self._ends[left]

    def _settle_for(self, length: int) -> bool:
        """Sorts in what was added if that is likely to make a run of so many slots; whether it was."""
        if self._unsorted < length:
            return False
        self._settle()
        return True

    def _settle(self) -> None:
        if self._unsorted:
            self._starts, self._ends = _merged(self._starts, self._ends, self._as_runs())
            self.no_longer_than, self._exact = self.total, False
            self._added.clear()
            self._added_runs.clear()
            self._added_slots.clear()
            self._unsorted = 0

    def _as_runs(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """What was added and is not sorted in."""
        added = self._added.copy()
        if self._added_slots:
            slots = np.sort(np.concatenate(self._added_slots))
            added.append(_merged_in_order(slots, slots + 1))
        if self._added_runs:
            runs = np.array(self._added_runs, dtype=np.int64)
            added.append((runs[:, 0], runs[:, 1]))
        return added


def _merged(
    starts: np.ndarray, ends: np.ndarray, added: list[tuple[np.ndarray, np.ndarray]]
) -> tuple[np.ndarray, np.ndarray]:
    """Disjoint runs and those that were `added`, in order."""
    starts = np.concatenate([starts, *(more for more, _ in added)])
    ends = np.concatenate([ends, *(more for _, more in added)])
    order = np.argsort(starts, kind="stable")
    return _merged_in_order(starts[order], ends[order])


def _merged_in_order(starts: np.ndarray, ends: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Runs in the order of their places, with those that meet as one."""
    apart = np.ones(len(starts) + 1, dtype=bool)
    np.not_equal(starts[1:], ends[:-1], out=apart[1:-1])
    return starts[apart[:-1]], ends[apart[1:]]


def _expand(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """int64 [sum of lengths]: start, start + 1, ... of each run."""
    before = np.cumsum(lengths) - lengths
    return np.arange(int(lengths.sum())) + np.repeat(starts - before, lengths)
