"""TokenAttention's memory: which KV slot holds which token. One slot = one token.

The Router hands out slots; backends only write where they are told. Every slot is in exactly one place:

    used                 by a row: the tokens of one request, in order, in one extent if memory allows
    cached               by the prefix cache, which got them from a row and gives them back when it evicts
    claimed, unused      the tail of a row's last extent, where its next tokens shall go
    in `FreeRuns`        claimed by nobody

A claim is a wish, not a reservation: unused slots count as free, and whoever finds no run long enough takes half of the
longest tail. So requests lie apart while there is room, and one whose slots are one run needs no gather on a CPU.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable

import numpy as np

from lightllm.protocol.arrays import EMPTY_INT32
from lightllm.router.free_runs import FreeRuns

RUN_TOKENS = 256
"""A new extent has at least so many slots in a row (fewer in a small memory), if evicting cached ones makes that possible."""


class TokenMemory:
    """`capacity` slots for up to `max_rows` rows; all methods take rows that are open."""

    def __init__(
        self, capacity: int, max_rows: int, evict: Callable[[int], np.ndarray] = lambda _: EMPTY_INT32
    ) -> None:
        """`evict(count)` gives up to `count` cached slots (int32) for others to take."""
        self.capacity = capacity
        self._evict = evict
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
        parts = []
        missing = count
        while missing:
            start, room = int(self._next[row]), int(self._end[row] - self._next[row])
            if not room:
                self._claim(row, max(missing, int(self._wanted[row] - self._held[row])), missing)
                continue
            part = min(room, missing)
            parts.append(np.arange(start, start + part, dtype=np.int32))
            self._next[row] += part
            self._held[row] += part
            missing -= part
        self.used += count
        return parts[0] if len(parts) == 1 else np.concatenate(parts) if parts else EMPTY_INT32

    def take_one_each(self, rows: np.ndarray) -> np.ndarray:
        """int32 [n]: one slot for each of `rows` (int32 [n], distinct). The caller has checked `free`."""
        slots = self._next[rows]
        full = slots >= self._end[rows]
        if not full.any():
            self._next[rows] = slots + 1
            self._held[rows] += 1
            self.used += len(rows)
            return slots
        # Rows with room first: claiming for a full one may take the tail of another.
        roomy = np.flatnonzero(~full)
        slots[roomy] = self.take_one_each(rows[roomy])
        for i in np.flatnonzero(full):
            slots[i] = self.take(int(rows[i]), 1)[0]
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
            self._runs.add(start, start + min(max(keep_from - at, 0), end - start))
            self._runs.add(start + min(max(keep_to - at, 0), end - start), end)
            at += end - start
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

    def _claim(self, row: int, want: int, missing: int) -> None:
        """Gives `row`, whose last extent is full, room for up to `want` more tokens, at least one."""
        end = int(self._end[row])
        following = self._runs.length_at(end) if end else 0
        if following:
            length = min(want, following)
            self._runs.take(end, length)
            self._end[row] = end + length
            return
        run = min(RUN_TOKENS, self.capacity // (8 * max(self._open_rows, 1)))
        start, length = self._find(want, min(want, max(missing, run)))
        if self._start[row] < end:
            self._full_extents[row].append((int(self._start[row]), end))
        self._start[row] = self._next[row] = start
        self._end[row] = start + length

    def _find(self, want: int, least: int) -> tuple[int, int]:
        """Takes a run of up to `want` slots: the smallest that fits, else the longest, made as long as `least` by evicting,
        else half of the longest tail."""
        fitting = self._runs.best_fit(want)
        if fitting is not None:
            self._runs.take(fitting, want)
            return fitting, want
        start, length = self._runs.largest()
        for _ in range(3):
            if length >= least or not len(evicted := self._evict(least)):
                break
            self.reclaim(evicted)
            start, length = self._runs.largest()
        length = min(length, want)
        tails = self._end - self._next
        victim = int(tails.argmax())
        half = min(want, (int(tails[victim]) + 1) // 2)
        if length < least and half > length:
            self._end[victim] -= half
            return int(self._end[victim]), half
        self._runs.take(start, length)
        return start, length


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
