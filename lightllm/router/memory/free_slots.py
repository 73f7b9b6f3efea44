"""Which KV slots are free, as a device wants them handed out.

FreeStack   a GPU follows `req_to_token` token by token, wherever the slots lie: those freed last come first
FreeMap     a CPU reads a context in place if its slots are neighbours: a row goes on behind its last token, and
            new rows begin where there is room for all that they may need
"""

from __future__ import annotations

from typing import Protocol

import numpy as np

_BLOCK = 1024
"""Flags of a `FreeMap` that are looked at together."""


class FreeSlots(Protocol):
    total: int
    """Free slots."""

    def take(self, total: int, after: np.ndarray, counts: np.ndarray, room: np.ndarray) -> np.ndarray:
        """int [total]: slots for n rows, row after row; there are so many. int64 [n] each: the last slot of each
        row (-1: it has none), how many it takes, and how many it may take in all before it ends."""

    def add(self, slots: np.ndarray) -> None:
        """Distinct slots (int [n]), in the order in which they were taken, are free again."""

    def slots(self) -> np.ndarray:
        """int: all of them, in any order."""

    def listed(self) -> np.ndarray:
        """uint8 [capacity]: how often each slot is among them, 0 or 1 unless something is wrong."""


class FreeStack:
    """Last in, first out; neither search nor sorting."""

    def __init__(self, capacity: int) -> None:
        self.total = capacity
        self._stack = np.arange(capacity, dtype=np.int32)[::-1].copy()

    def take(self, total: int, after: np.ndarray, counts: np.ndarray, room: np.ndarray) -> np.ndarray:
        end = self.total
        self.total -= total
        return self._stack[self.total : end][::-1].copy()

    def add(self, slots: np.ndarray) -> None:
        self._stack[self.total : self.total + len(slots)] = slots[::-1]
        self.total += len(slots)

    def slots(self) -> np.ndarray:
        return self._stack[: self.total]

    def listed(self) -> np.ndarray:
        return np.bincount(self.slots(), minlength=len(self._stack)).astype(np.uint8)


class FreeMap:
    """One flag a slot. Nothing is reserved: what a row may still need lies free behind it for as long as there is room.

    Where runs of free slots begin and end is kept from one search to the next; a search looks anew at the blocks of flags
    that have changed since.
    """

    def __init__(self, capacity: int) -> None:
        self.total = capacity
        self._capacity = capacity
        self._blocks = capacity // _BLOCK + 1
        self._flags = np.zeros(self._blocks * _BLOCK + 1, dtype=bool)
        """Of slot i at [i + 1], so that each has one before it; False behind the last one too."""
        self._flags[1 : capacity + 1] = True
        self._free = self._flags[1:]
        self._edges = np.array([0, capacity])
        """Slots whose flag differs from the one before it, ascending: where runs begin and, in turns, end."""
        self._changed = np.zeros(self._blocks, dtype=bool)
        """Blocks in which `_edges` is not up to date."""

    def take(self, total: int, after: np.ndarray, counts: np.ndarray, room: np.ndarray) -> np.ndarray:
        if len(counts) == total:
            return self._take_one_each(after, room)
        parts = [
            self._take_some(*row) for row in zip(after.tolist(), counts.tolist(), room.tolist(), strict=True)
        ]
        return np.concatenate(parts)

    def add(self, slots: np.ndarray) -> None:
        self._set(slots, True)
        self.total += len(slots)

    def slots(self) -> np.ndarray:
        return self._free.nonzero()[0]

    def listed(self) -> np.ndarray:
        return self._free[: self._capacity].astype(np.uint8)

    def _take_one_each(self, after: np.ndarray, room: np.ndarray) -> np.ndarray:
        """Rows whose way is blocked go on at free slots at equal distances, so that they do not meet again soon."""
        slots = np.where(after < 0, self._capacity, after + 1)
        blocked = (~self._free[slots]).nonzero()[0]
        self._taken(np.delete(slots, blocked) if len(blocked) else slots)
        if len(blocked) == 1:
            slots[blocked] = self._take_some(-1, 1, int(room[blocked[0]]))
        elif len(blocked):
            which = (2 * np.arange(len(blocked)) + 1) * self.total // (2 * len(blocked))
            starts, lengths = self._runs()
            until = np.cumsum(lengths)
            run = np.searchsorted(until, which, side="right")
            slots[blocked] = starts[run] + which - (until - lengths)[run]
            self._taken(slots[blocked])
        return slots

    def _take_some(self, after: int, count: int, room: int) -> np.ndarray:
        """Behind `after` if all are free there; else in the smallest run that has `room`, at its end, for the row that ends
        where it begins may grow into it; else in the middle of the longest one, or in as many of these as it takes."""
        place = after + 1 if after >= 0 else self._capacity
        if not self._free[place : place + count].all() or place + count > self._capacity:
            starts, lengths = self._runs()
            fitting = (lengths >= max(room, count)).nonzero()[0]
            longest = int(lengths.argmax())
            if len(fitting):
                best = fitting[lengths[fitting].argmin()]
                place = int(starts[best] + lengths[best]) - max(room, count)
            elif lengths[longest] >= count:
                place = int(starts[longest] + (lengths[longest] - count) // 2)
            else:
                first = np.argsort(-lengths, kind="stable")
                runs = [
                    np.arange(s, s + n)
                    for s, n in zip(starts[first].tolist(), lengths[first].tolist(), strict=True)
                ]
                return self._taken(np.concatenate(runs)[:count])
        return self._taken(np.arange(place, place + count))

    def _runs(self) -> tuple[np.ndarray, np.ndarray]:
        """int64 [runs] each: where the runs of free slots begin, ascending, and how long they are."""
        changed = self._changed.nonzero()[0]
        if len(changed):
            flags, before = self._free.reshape(-1, _BLOCK), self._flags[:-1].reshape(-1, _BLOCK)
            place = (
                (flags[changed] != before[changed]).ravel().nonzero()[0]
            )  # of one dimension it is twice as fast
            kept = self._edges[~self._changed[self._edges // _BLOCK]]
            self._edges = np.sort(np.concatenate([kept, changed[place // _BLOCK] * _BLOCK + place % _BLOCK]))
            self._changed[changed] = False
        starts = self._edges[::2]
        return starts, self._edges[1::2] - starts

    def _taken(self, slots: np.ndarray) -> np.ndarray:
        self._set(slots, False)
        self.total -= len(slots)
        return slots

    def _set(self, slots: np.ndarray, free: bool) -> None:
        self._free[slots] = free
        self._changed[slots // _BLOCK] = True
        self._changed[(slots + 1) // _BLOCK] = True  # of the one behind, the one before it has changed
