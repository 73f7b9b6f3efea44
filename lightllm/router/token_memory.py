"""TokenAttention's memory: which KV slot holds which token. One slot = one token.

The Router hands out slots; backends only write where they are told. Every slot is in exactly one place:

    used                 by a row: the tokens of one request, in order, in one extent if memory allows
    cached               by the prefix cache, which got them from a row and gives them back when it evicts
    claimed, unused      the tail of a row's last extent, where its next tokens shall go
    in `FreeRuns`        claimed by nobody

A claim is a wish, not a reservation: unused slots count as free, and whoever finds no run takes half of the longest tail.
So requests lie apart while there is room, and one whose slots are one run needs no gather on a CPU. Where nothing has room
for all that a row may still need, it claims its share of what is left, so that it need not come back for every token.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable

import numpy as np

from lightllm.protocol.arrays import EMPTY_INT32
from lightllm.router.free_runs import FreeRuns

RUN_TOKENS = 256
"""What a row claims to grow into, if evicting cached slots makes that possible (fewer in a small memory)."""
BLOCK = 16
"""The least that a row claims, unless memory is small or short."""


class TokenMemory:
    """`capacity` slots for up to `max_rows` rows; all methods take rows that are open."""

    def __init__(
        self,
        capacity: int,
        max_rows: int,
        evict: Callable[[int], np.ndarray] = lambda _: EMPTY_INT32,
        evictable: Callable[[], int] = lambda: 0,
    ) -> None:
        """`evict(count)` gives up to `count` of the `evictable()` cached slots (int32) for others to take."""
        self.capacity = capacity
        self._evict = evict
        self._evictable = evictable
        self._open_rows = 0
        self.used = 0
        self.cached = 0
        self._runs = FreeRuns(capacity)
        # The last extent of each row: [start, next) used, [next, end) claimed.
        self._start = np.zeros(max_rows, dtype=np.int32)
        self._next = np.zeros(max_rows, dtype=np.int32)
        self._end = np.zeros(max_rows, dtype=np.int32)
        self._wanted = np.zeros(max_rows, dtype=np.int64)
        self._held = np.zeros(max_rows, dtype=np.int64)
        self._full_extents: list[list[tuple[int, int]]] = [[] for _ in range(max_rows)]

    @property
    def free(self) -> int:
        """Slots that hold no token."""
        return self.capacity - self.used - self.cached

    def held(self, row: int) -> int:
        return int(self._held[row])

    def open(self, row: int, expected: int) -> None:
        """A request enters `row`; `expected` tokens in all decide where it is placed."""
        self._wanted[row] = expected
        self._held[row] = 0
        self._open_rows += 1

    def take(self, row: int, count: int) -> np.ndarray:
        """int32 [count]: slots for the next tokens of `row`. The caller has checked `free`."""
        if count > self.free:
            raise RuntimeError(f"{count} slots wanted, {self.free} free")
        start, at, end = int(self._start[row]), int(self._next[row]), int(self._end[row])
        self.used += count
        self._held[row] += count
        if count <= end - at:
            self._next[row] = at + count
            return np.arange(at, at + count, dtype=np.int32)
        self._next[row] = end  # so that nobody takes the rest of its claim
        missing = count - (end - at)
        parts = [np.arange(at, end, dtype=np.int32)]
        for first, last in self._pieces(row, missing):
            if first != end:
                if start < end:
                    self._full_extents[row].append((start, end))
                start = first
            at, end = min(first + missing, last), last
            parts.append(np.arange(first, at, dtype=np.int32))
            missing -= at - first
        self._start[row], self._next[row], self._end[row] = start, at, end
        return np.concatenate(parts)

    def take_one_each(self, rows: np.ndarray) -> np.ndarray:
        """int32 [n]: one slot for each of `rows` (int32 [n], distinct). The caller has checked `free`."""
        slots = self._next[rows]
        full = slots >= self._end[rows]
        # Rows with room first: claiming for a full one may take the tail of another.
        self._next[rows] = slots + ~full
        if full.any():
            slots[full] = self._extend(rows[full])
        self._held[rows] += 1
        self.used += len(rows)
        return slots

    def give_back(self, row: int, count: int) -> None:
        """Un-takes the last `count` slots of `row`."""
        self.used -= count
        self._held[row] -= count
        while count:
            part = min(count, int(self._next[row] - self._start[row]))
            self._next[row] -= part
            count -= part
            if count:
                self._runs.add(int(self._start[row]), int(self._end[row]))
                start, end = self._full_extents[row].pop()
                self._start[row], self._next[row], self._end[row] = start, end, end

    def cede(self, row: int, count: int) -> None:
        """The first `count` slots of `row` become cached."""
        self.used -= count
        self.cached += count
        self._held[row] -= count
        self._wanted[row] -= count
        full = self._full_extents[row]
        while count and full:
            start, end = full[0]
            part = min(count, end - start)
            count -= part
            if start + part == end:
                del full[0]
            else:
                full[0] = (start + part, end)
        self._start[row] += count

    def release(self, row: int, keep_from: int = 0, keep_to: int = 0) -> None:
        """Frees everything that `row` uses or claims, but for its slots number [keep_from, keep_to): they become cached."""
        self.used -= int(self._held[row])
        self.cached += keep_to - keep_from
        at = 0
        for start, end in self._extents(row):
            after = at + end - start
            if at < keep_from or keep_to < after:  # else it is kept as a whole
                self._runs.add(start, start + min(max(keep_from - at, 0), end - start))
                self._runs.add(start + min(max(keep_to - at, 0), end - start), end)
            at = after
        self._full_extents[row].clear()
        self._start[row] = self._next[row] = self._end[row] = 0
        self._held[row] = self._wanted[row] = 0
        self._open_rows -= 1

    def reclaim(self, slots: np.ndarray) -> None:
        """Cached slots (int32, distinct) become free."""
        if not len(slots):
            return
        self.cached -= len(slots)
        slots = np.sort(slots)
        starts = np.flatnonzero(np.diff(slots, prepend=slots[0] - 2) != 1)
        ends = np.append(starts[1:], len(slots)) - 1
        for start, end in zip(slots[starts].tolist(), slots[ends].tolist(), strict=True):
            self._runs.add(start, end + 1)

    def slots(self, row: int) -> np.ndarray:
        """int32 [held]: the slots of `row` in the order of its tokens."""
        parts = [np.arange(start, end, dtype=np.int32) for start, end in self._full_extents[row]]
        parts.append(np.arange(self._start[row], self._next[row], dtype=np.int32))
        return np.concatenate(parts)

    def problems(self, cached: np.ndarray = EMPTY_INT32) -> list[str]:
        """What is wrong with the books, if the prefix cache has the slots `cached` (int32): every slot must be in exactly
        one place. Costs O(capacity)."""
        owners = np.bincount(cached, minlength=self.capacity)
        for start, end in self._runs:
            owners[start:end] += 1
        used = 0
        for row in range(len(self._held)):
            for start, end in self._extents(row):
                owners[start:end] += 1
            held = sum(end - start for start, end in self._full_extents[row])
            held += int(self._next[row] - self._start[row])
            used += held
            if held != self._held[row] or self._next[row] > self._end[row]:
                return [f"row {row} holds {held} slots, its books say {self._held[row]}"]
        found = []
        if used != self.used:
            found.append(f"{used} slots are used, the books say {self.used}")
        if len(cached) != self.cached:
            found.append(f"{len(cached)} slots are cached, the books say {self.cached}")
        if (owners == 0).any():
            found.append(
                f"{int((owners == 0).sum())} slots are lost, the first is {int(np.argmax(owners == 0))}"
            )
        if (owners > 1).any():
            found.append(
                f"{int((owners > 1).sum())} slots are owned twice, the first is {int(np.argmax(owners > 1))}"
            )
        return found

    def _extents(self, row: int) -> list[tuple[int, int]]:
        last = (int(self._start[row]), int(self._end[row]))
        return [*self._full_extents[row], last] if last[0] < last[1] else list(self._full_extents[row])

    # -- claims

    def _pieces(self, row: int, missing: int) -> list[tuple[int, int]]:
        """Runs [start, end) for at least `missing` tokens of `row`, which have been counted already; the first of them may
        follow its last extent."""
        runs, share = self._runs, self._share()
        want = missing + max(0, int(self._wanted[row] - self._held[row]))
        end = int(self._end[row])
        pieces = []
        following = min(want, runs.length_at(end) if end else 0)
        if following:
            pieces.append((end, runs.take_at(end, following)))
            missing, want = missing - following, want - following
        if missing <= 0:
            return pieces
        fitting = runs.take_fitting(want)
        if fitting is not None:
            return [*pieces, fitting]
        size = max(missing, min(want, share))
        self._make_room(size, 1, missing)
        return pieces + runs.take_longest(size if runs.longest >= size else missing, share)

    def _extend(self, rows: np.ndarray) -> np.ndarray:
        """int32 [n]: one slot for each of `rows` (int32 [n]), whose claims are used up; they get new ones."""
        runs, share = self._runs, self._share()
        wants = np.maximum(self._wanted[rows] - self._held[rows], 1).tolist()
        settled, homeless, extents = [], [], []
        for i, (end, want) in enumerate(zip(self._end[rows].tolist(), wants, strict=True)):
            following = runs.length_at(end) if end else 0
            if following:
                length, align = (want, 1) if following >= want else (1, share)
                extents.append((end, runs.take_at(end, length, align)))
                settled.append(i)
            elif (fitting := runs.take_fitting(want) if want <= runs.longest else None) is not None:
                extents.append(fitting)
                settled.append(i)
            else:
                homeless.append(i)
        if settled:
            self._begin(rows[settled], extents)
        if homeless:
            count = len(homeless)
            self._make_room(share, count, count)
            self._begin(
                rows[homeless], runs.take_pieces(count, min(share, _power_of_two(runs.total // count)))
            )
        return self._next[rows] - 1

    def _begin(self, rows: np.ndarray, extents: list[tuple[int, int]]) -> None:
        """Each of `rows`, which have used up their last extents, goes on in one of `extents`, and takes its first slot."""
        first, last = np.array(extents, dtype=np.int32).T
        start, end = self._start[rows], self._end[rows]
        moves = first != end
        for i in np.flatnonzero(moves & (start < end)).tolist():
            self._full_extents[rows[i]].append((int(start[i]), int(end[i])))
        self._start[rows] = np.where(moves, first, start)
        self._next[rows] = first + 1
        self._end[rows] = last

    def _make_room(self, size: int, count: int, least: int) -> None:
        """Brings about `count` free runs of `size` slots by evicting cached ones, if a few attempts can do that; and at
        least `least` slots in all, by taking halves of the longest tails."""
        runs = self._runs
        for _ in range(3):
            missing = max(size * count - runs.total, size if runs.longest < size else 0)
            if missing <= 0 or not len(evicted := self._evict(missing)):
                break
            self.reclaim(evicted)
        while runs.total < least:
            tails = self._end - self._next
            order = np.argsort(-tails, kind="stable")
            halves = (tails[order] + 1) // 2
            victims = int(np.searchsorted(np.cumsum(halves), least - runs.total)) + 1
            if not halves[0]:
                raise RuntimeError(f"{least} slots wanted, but only {runs.total} are free")
            for row, half in zip(order[:victims].tolist(), halves[:victims].tolist(), strict=True):
                end = int(self._end[row])
                self._end[row] = end - half
                runs.add(end - half, end)

    def _share(self) -> int:
        """What a row claims where no run has room for all that it may need: its part of what is left. Cached slots are
        evicted for that, but a wish may not empty the cache.

        A power of two, and all cuts are made at its multiples: what is cut off in a full memory is given back in pieces
        that others can use, and does not crumble."""
        rows = max(self._open_rows, 1)
        left = max(self._runs.total + self._evictable(), BLOCK * rows)
        return _power_of_two(min(RUN_TOKENS, left // rows, self.capacity // (8 * rows)))


def _power_of_two(most: int) -> int:
    """The largest one that is not above `most`; at least 1."""
    return 1 << max(most, 1).bit_length() - 1


class RowMemory:
    """Which rows are taken. The lowest free row first, so that the tables stay dense."""

    def __init__(self, max_rows: int) -> None:
        self.max_rows = max_rows
        self._free = list(range(max_rows))

    @property
    def free(self) -> int:
        return len(self._free)

    def take(self) -> int:
        return heapq.heappop(self._free)

    def release(self, row: int) -> None:
        heapq.heappush(self._free, row)

    def free_rows(self) -> list[int]:
        return sorted(self._free)
