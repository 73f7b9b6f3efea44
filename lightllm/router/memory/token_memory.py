"""TokenAttention's memory: which KV slot holds which token. One slot = one token.

The Router hands out slots; backends only write where they are told. Every slot is in exactly one place:

    used                 by a row: the tokens of one request, in order, neighbours if memory allows
    cached               by the prefix cache, which got them from a row and gives them back when it evicts
    claimed, unused      by a row, behind its last token: where its next ones shall go
    in `FreeRuns`        claimed by nobody

A claim is a wish, not a reservation: unused slots count as free, and whoever finds no run takes half of the longest claim.
So requests lie apart while there is room, and one whose slots are one run needs no gather on a CPU. Where nothing has room
for all that a row may still need, it claims its share of what is left, so that it need not come back for every token. Where
hardly anything is left, nobody claims: a claim would soon be taken from its row again, and what is free lies apart anyway.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable

import numpy as np

from lightllm.protocol.arrays import EMPTY_INT32
from lightllm.router.memory.free_runs import FreeRuns

RUN_TOKENS = 256
"""What a row claims to grow into, if evicting cached slots makes that possible (fewer in a small memory)."""
BLOCK = 16
"""The least that a row claims (fewer in a small memory), or nothing."""


class TokenMemory:
    """`capacity` slots for up to `max_rows` rows of up to `max_len` tokens; all methods take rows that are open."""

    def __init__(
        self,
        capacity: int,
        max_rows: int,
        max_len: int | None = None,
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
        self._table = np.zeros((max_rows, max_len or capacity), dtype=np.int32)
        """The slots that each row has taken since it was opened; pages that nobody needs are never touched."""
        self._first = np.zeros(max_rows, dtype=np.int64)
        """Those before it are cached by now."""
        self._count = np.zeros(max_rows, dtype=np.int64)
        self._wanted = np.zeros(max_rows, dtype=np.int64)
        self._next = np.zeros(max_rows, dtype=np.int64)
        """Claimed: [next, end)."""
        self._end = np.zeros(max_rows, dtype=np.int64)

    @property
    def free(self) -> int:
        """Slots that hold no token."""
        return self.capacity - self.used - self.cached

    def held(self, row: int) -> int:
        return int(self._count[row] - self._first[row])

    def open(self, row: int, expected: int) -> None:
        """A request enters `row`; `expected` tokens in all decide where it is placed."""
        self._wanted[row] = expected
        self._open_rows += 1

    def take(self, row: int, count: int) -> np.ndarray:
        """int32 [count]: slots for the next tokens of `row`. The caller has checked `free`."""
        if count > self.free:
            raise RuntimeError(f"{count} slots wanted, {self.free} free")
        at, held = int(self._next[row]), int(self._count[row])
        claimed = min(count, int(self._end[row]) - at)
        slots = self._table[row, held : held + count]
        if claimed:
            slots[:claimed] = np.arange(at, at + claimed)
            self._next[row] += claimed
        self._count[row] += count
        self.used += count
        if claimed < count:
            self._claim(row, slots[claimed:])
        return slots.copy()

    def take_one_each(self, rows: np.ndarray) -> np.ndarray:
        """int32 [n]: one slot for each of `rows` (int64 [n], distinct). The caller has checked `free`."""
        slots, held = self._next[rows], self._count[rows]
        full = (slots >= self._end[rows]).nonzero()[0]
        # Rows with room first: claiming for a full one may take the claim of another.
        self._next[rows] = slots + 1
        if len(full):
            others = rows[full]
            self._next[others] = slots[full]
            slots[full] = self._claim_one_each(others)
        self._table[rows, held] = slots
        self._count[rows] = held + 1
        self.used += len(rows)
        return slots.astype(np.int32, copy=False)

    def give_back(self, row: int, count: int) -> None:
        """Un-takes the last `count` slots of `row`; it goes on from there if nobody else takes them."""
        self._count[row] -= count
        held = int(self._count[row])
        if count:
            self.used -= count
            self._runs.add_slots(self._table[row, held : held + count].copy())
            self._runs.add_run(int(self._next[row]), int(self._end[row]))
            self._next[row] = self._end[row] = self._table[row, held - 1] + 1 if held else 0
        if held == self._first[row]:  # what was ceded may be to compute again
            self._wanted[row] -= held
            self._first[row] = self._count[row] = 0

    def cede(self, row: int, count: int) -> None:
        """The first `count` slots of `row` become cached."""
        self.used -= count
        self.cached += count
        self._first[row] += count

    def release(self, row: int, keep_from: int = 0, keep_to: int = 0) -> None:
        """Frees everything that `row` holds or claims, but for its slots number [keep_from, keep_to): they become cached."""
        own = self._table[row, self._first[row] : self._count[row]].copy()
        self.used -= len(own)
        self.cached += keep_to - keep_from
        self._runs.add_slots(own[:keep_from])
        self._runs.add_slots(own[keep_to:])
        self._runs.add_run(int(self._next[row]), int(self._end[row]))
        for state in (self._first, self._count, self._wanted, self._next, self._end):
            state[row] = 0
        self._open_rows -= 1

    def reclaim(self, slots: np.ndarray) -> None:
        """Cached slots (int32, distinct) become free."""
        self.cached -= len(slots)
        self._runs.add_slots(slots)

    def slots(self, row: int, most: int | None = None) -> np.ndarray:
        """int32 [held]: the slots of `row` in the order of its tokens; the first `most` of them."""
        return self._table[row, self._first[row] : self._count[row]][:most].copy()

    def problems(self, cached: np.ndarray = EMPTY_INT32) -> list[str]:
        """What is wrong with the books, if the prefix cache has the slots `cached` (int32): every slot must be in exactly
        one place. Costs O(capacity)."""
        owners = np.bincount(cached, minlength=self.capacity)
        for start, end in self._runs:
            owners[start:end] += 1
        used = 0
        for row in range(len(self._count)):
            own = self.slots(row)
            used += len(own)
            np.add.at(owners, own, 1)
            owners[self._next[row] : self._end[row]] += 1
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

    # -- claims

    def _claim(self, row: int, slots: np.ndarray) -> None:
        """Fills `slots` (int32 [n], n > 0) for `row`, whose claim is used up, and claims what may follow."""
        runs, share = self._runs, self._share()
        missing = len(slots)
        if not share:
            slots[:] = self._take_any(missing)
            self._next[row] = self._end[row] = slots[-1] + 1
            return
        want = missing + max(0, int(self._wanted[row] - self._count[row]))
        place = int(self._end[row])
        following = runs.take_after(place, want)
        if following:
            count = min(following, missing)
            slots[:count] = np.arange(place, place + count)
            self._next[row], self._end[row] = place + count, place + following
            slots, missing, want = slots[count:], missing - count, want - following
        if not missing:
            return
        found = runs.take_fitting(want)
        if found is None:
            size = max(missing, min(want, share))
            found = runs.take_fitting(size, share)
            if found is None:
                self._make_room(size, 1, missing)
                found = runs.take_fitting(size, share)
        if found is not None:
            start, end = found
            slots[:] = np.arange(start, start + missing)
            self._next[row], self._end[row] = start + missing, end
        else:
            slots[:], end = runs.take_first(missing, share)
            self._next[row], self._end[row] = slots[-1] + 1, end

    def _claim_one_each(self, rows: np.ndarray) -> np.ndarray:
        """int [n]: one slot for each of `rows` (int64 [n]), whose claims are used up; they claim what may follow."""
        runs, share = self._runs, self._share()
        if not share:
            return self._take_any(len(rows))
        places = self._end[rows]
        wants = np.maximum(self._wanted[rows] - self._count[rows], 1)
        ends = places + runs.take_following(places, wants, share)
        for i in ((ends == places) & (wants <= runs.no_longer_than)).nonzero()[0].tolist():
            found = runs.take_fitting(int(wants[i]))
            if found is not None:
                places[i], ends[i] = found
        homeless = (ends == places).nonzero()[0]
        ends[homeless] = places[homeless] + 1  # claim nothing
        self._next[rows], self._end[rows] = places + 1, ends  # so that nobody takes these
        if len(homeless):
            starts, size = self._take_blocks(len(homeless), share)
            places[homeless] = starts
            self._next[rows[homeless]], self._end[rows[homeless]] = starts + 1, starts + size
        return places

    def _take_blocks(self, count: int, size: int) -> tuple[np.ndarray, int]:
        """(starts, int64 [count]; slots of each) of runs of `size` slots, or fewer where there are not enough of these."""
        runs = self._runs
        if not runs.has_blocks(count):
            runs.join_blocks()
            self._make_room(size, count, count)
            runs.cut_blocks(count, size)
        return runs.take_blocks(count)

    def _take_any(self, count: int) -> np.ndarray:
        """int [count]: free slots, wherever they are."""
        self._make_room(1, count, count)
        return self._runs.take_any(count)

    def _make_room(self, size: int, count: int, least: int) -> None:
        """Evicts cached slots where `count` runs of `size` slots are wanted, and there are not so many slots or no such run:
        once, for what is evicted need not be neighbours. Makes at least `least` slots free, by taking halves of the longest
        claims."""
        runs = self._runs
        if size > 1:
            missing = max(size * count - runs.uncut, size if runs.longest() < size else 0)
        else:
            missing = count - runs.total
        if missing > 0 and self._evictable():
            self.reclaim(self._evict(missing))
        while runs.total < least:
            claims = self._end - self._next
            order = np.argsort(-claims, kind="stable")
            halves = (claims[order] + 1) // 2
            victims = int(np.searchsorted(np.cumsum(halves), least - runs.total)) + 1
            if not halves[0]:
                raise RuntimeError(f"{least} slots wanted, but only {runs.total} are free")
            order, halves = order[:victims], halves[:victims]
            self._end[order] -= halves
            runs.add(self._end[order], self._end[order] + halves)

    def _share(self) -> int:
        """What a row claims where no run has room for all that it may need: its part of half of what is left, or nothing
        if that is less than a block. Cached slots are evicted for a claim, but a wish may not empty the cache.

        A power of two, and all cuts are made at its multiples: what is cut off in a full memory is given back in pieces
        that others can use, and does not crumble."""
        rows = max(self._open_rows, 1)
        most = min(RUN_TOKENS, max(1, self.capacity // (8 * rows)))
        part = (self._runs.total + self._evictable()) // (2 * rows)
        return _power_of_two(min(most, part)) if part >= min(most, BLOCK) else 0


def _power_of_two(most: int) -> int:
    """The largest one that is not above `most`, which is at least 1."""
    return 1 << most.bit_length() - 1


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
