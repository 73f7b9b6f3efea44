"""Which KV slots are free, as a device wants them handed out.

FreeStack   a GPU follows `req_to_token` token by token, wherever the slots lie: those freed last come first
FreeMap     a CPU reads a context in place if its slots are neighbours: a row goes on behind its last token, and
            new rows begin where there is room for all that they may need
"""

from __future__ import annotations

from typing import Protocol

import numpy as np


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


class FreeMap:
    """One flag a slot. Nothing is reserved: what a row may still need lies free behind it for as long as there is room.

    To find room costs a look at every flag (0.2 ms for 500,000), once for a request that enters, and once in a round where
    rows have run into others.
    """

    def __init__(self, capacity: int) -> None:
        self.total = capacity
        self._capacity = capacity
        self._free = np.ones(capacity + 1, dtype=bool)
        self._free[capacity] = False  # what lies behind the last slot

    def take(self, total: int, after: np.ndarray, counts: np.ndarray, room: np.ndarray) -> np.ndarray:
        if len(counts) == total:
            return self._take_one_each(after, room)
        parts = [
            self._take_some(*row) for row in zip(after.tolist(), counts.tolist(), room.tolist(), strict=True)
        ]
        return np.concatenate(parts)

    def add(self, slots: np.ndarray) -> None:
        self._free[slots] = True
        self.total += len(slots)

    def slots(self) -> np.ndarray:
        return self._free.nonzero()[0]

    def _take_one_each(self, after: np.ndarray, room: np.ndarray) -> np.ndarray:
        """Rows whose way is blocked go on at free slots at equal distances, so that they do not meet again soon."""
        slots = np.where(after < 0, self._capacity, after + 1)
        blocked = (~self._free[slots]).nonzero()[0]
        self._taken(np.delete(slots, blocked) if len(blocked) else slots)
        if len(blocked) == 1:
            slots[blocked] = self._take_some(-1, 1, int(room[blocked[0]]))
        elif len(blocked):
            free = self.slots()
            slots[blocked] = free[(2 * np.arange(len(blocked)) + 1) * len(free) // (2 * len(blocked))]
            self._taken(slots[blocked])
        return slots

    def _take_some(self, after: int, count: int, room: int) -> np.ndarray:
        """Behind `after` if all are free there; else in the smallest run that has `room`, at its end, for the row that ends
        where it begins may grow into it; else in the middle of the longest one, or in as many of these as it takes."""
        place = after + 1 if after >= 0 else self._capacity
        if not self._free[place : place + count].all() or place + count > self._capacity:
            edges = np.diff(self._free, prepend=False).nonzero()[0]
            starts, lengths = edges[::2], edges[1::2] - edges[::2]
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

    def _taken(self, slots: np.ndarray) -> np.ndarray:
        self._free[slots] = False
        self.total -= len(slots)
        return slots
