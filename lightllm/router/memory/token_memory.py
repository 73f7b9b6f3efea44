"""TokenAttention's memory: which KV slot holds which token. One slot = one token.

The Router hands out slots; backends only write where they are told. Every slot is in exactly one place:

    used      by a row: the tokens of one request, in order
    cached    by the prefix cache, which got them from a row and gives them back when it evicts
    free      in `FreeSlots`
"""

from __future__ import annotations

import numpy as np

from lightllm.protocol.arrays import EMPTY_INT32
from lightllm.router.memory.free_slots import FreeMap, FreeSlots, FreeStack


class TokenMemory:
    """`capacity` slots for up to `max_rows` rows of up to `max_len` tokens; all methods take rows that are open."""

    def __init__(
        self, capacity: int, max_rows: int, max_len: int | None = None, neighbours: bool = False
    ) -> None:
        """`neighbours`: the device gains where the slots of a context are neighbours."""
        self.capacity = capacity
        self.used = 0
        self.cached = 0
        self._neighbours = neighbours
        self._free: FreeSlots = FreeMap(capacity) if neighbours else FreeStack(capacity)
        self._table = np.zeros((max_rows, max_len or capacity), dtype=np.int32)
        """The slots that each row has taken since it was opened; pages of it that no row needs are never touched."""
        self._first = np.zeros(max_rows, dtype=np.int64)
        """Those before it are cached by now."""
        self._count = np.zeros(max_rows, dtype=np.int64)
        self._expected = np.zeros(max_rows, dtype=np.int64)

    @property
    def free(self) -> int:
        """Slots that hold no token."""
        return self._free.total

    def held(self, row: int) -> int:
        return int(self._count[row] - self._first[row])

    def open(self, row: int, expected: int) -> None:
        """A request enters `row`; `expected` tokens in all decide where it is placed."""
        self._expected[row] = expected

    def take(self, rows: np.ndarray, counts: np.ndarray, total: int) -> np.ndarray:
        """int32 [total]: slots for the next tokens of `rows` (int64 [n], distinct), `counts` (int [n], from 1) of each,
        `total` of all, row after row. The caller has checked `free`."""
        if total > self.free:
            raise RuntimeError(f"{total} slots wanted, {self.free} free")
        held = self._count[rows]
        after = room = held
        if self._neighbours:
            after = np.where(held > 0, self._table[rows, held - 1].astype(np.int64), -1)
            room = np.maximum(self._expected[rows] - held, counts)
        slots = self._free.take(total, after, counts, room).astype(np.int32, copy=False)
        if total == len(rows):
            self._table[rows, held] = slots
        else:
            until = np.cumsum(counts)
            place = np.arange(total) + np.repeat(held - until + counts, counts)
            self._table[np.repeat(rows, counts), place] = slots
        self._count[rows] = held + counts
        self.used += total
        return slots

    def give_back(self, row: int, count: int) -> None:
        """Un-takes the last `count` slots of `row`."""
        self._count[row] -= count
        held = int(self._count[row])
        self.used -= count
        self._free.add(self._table[row, held : held + count])
        if held == self._first[row]:  # what was donated may have to be computed again
            self._expected[row] -= held
            self._first[row] = self._count[row] = 0

    def donate(self, row: int, count: int) -> None:
        """The first `count` slots of `row` become cached."""
        self.used -= count
        self.cached += count
        self._first[row] += count

    def release(self, row: int, keep_from: int = 0, keep_to: int = 0) -> None:
        """Frees all that `row` holds, but for its slots number [keep_from, keep_to): they become cached."""
        own = self._table[row, self._first[row] : self._count[row]]
        self.used -= len(own)
        self.cached += keep_to - keep_from
        self._free.add(own[keep_to:])
        self._free.add(own[:keep_from])
        self._first[row] = self._count[row] = self._expected[row] = 0

    def reclaim(self, slots: np.ndarray) -> None:
        """Cached slots (int32, distinct) become free."""
        self.cached -= len(slots)
        self._free.add(slots)

    def slots(self, row: int, most: int | None = None) -> np.ndarray:
        """int32 [held]: the slots of `row` in the order of its tokens; the first `most` of them."""
        return self._table[row, self._first[row] : self._count[row]][:most].copy()

    def per_cell(self, cells: int) -> tuple[np.ndarray, np.ndarray]:
        """int64 [cells] each: how many slots of each of `cells` equal pieces of the memory rows hold, and how many are free.
        Costs O(capacity)."""
        open_rows = (self._count > self._first).nonzero()[0]
        used = [self._table[row, self._first[row] : self._count[row]] for row in open_rows.tolist()]
        return tuple(
            np.bincount(slots.astype(np.int64) * cells // self.capacity, minlength=cells)
            for slots in (np.concatenate(used or [EMPTY_INT32]), self._free.slots())
        )  # type: ignore[return-value]

    def check(self, cached: np.ndarray = EMPTY_INT32) -> list[str]:
        """What is wrong with the books, if the prefix cache has the slots `cached` (int32): every slot must be in exactly
        one place. Costs O(capacity)."""
        used = np.concatenate([self.slots(row) for row in range(len(self._count))])
        owners = self._free.listed()
        np.add.at(owners, np.concatenate([used, cached]), 1)
        found = []
        for what, slots, booked in (("used", used, self.used), ("cached", cached, self.cached)):
            if len(slots) != booked:
                found.append(f"{len(slots)} slots are {what}, the books say {booked}")
        wrong = (owners != 1).nonzero()[0]
        for what, those in (("lost", wrong[owners[wrong] == 0]), ("owned twice", wrong[owners[wrong] > 1])):
            if len(those):
                found.append(f"{len(those)} slots are {what}, the first is {those[0]}")
        return found
