"""Virtual token ids: what stands for an image's tokens in a prompt, above every vocabulary.

Each image gets a range of ids of its own, so that the prefix cache tells images apart as it does texts. Ranges are handed out
in ascending order, and from the start again when the ids are used up: a cycle ends. The prefix cache is flushed then, and
whatever is in the image cache at that moment keeps its range for the whole of the new cycle: a request that is running cannot
be flushed, and what it leaves in the prefix cache must not meet another image with its ids.

An item's number is the position of its range in all cycles together, so that one counter makes both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

FIRST_VIRTUAL_ID = 2**24
"""Lowest virtual id; a model with images has a smaller vocabulary."""
END_OF_VIRTUAL_IDS = 2**31
"""One more than the highest virtual id (they are int32)."""


class VirtualIds:
    """Pure arithmetic."""

    def __init__(
        self,
        cycle: int = 0,
        next_id: int | None = None,
        kept: Iterable[tuple[int, int]] = (),
        first: int = FIRST_VIRTUAL_ID,
        end: int = END_OF_VIRTUAL_IDS,
    ) -> None:
        """next_id: where the search for the next range begins. kept: (first id, tokens) of ranges that this cycle passes over.
        first, end: bounds of the ids."""
        self.cycle = cycle
        self.next_id = first if next_id is None else min(next_id, end)
        self.kept = sorted(kept)
        self._first = first
        self._end = end

    def first_id(self, item_id: int) -> int:
        return self._first + item_id % (self._end - self._first)

    def take(self, tokens: int, in_use: Callable[[], Iterable[tuple[int, int]]]) -> int:
        """Number of an item that has the ids [first_id(number), first_id(number) + tokens).

        in_use: (first id, tokens) of every range that must not be handed out, asked when a cycle ends. Raises `OverflowError`
        if those leave no room.
        """
        if tokens < 1:
            raise ValueError(f"an image must have tokens, not {tokens}")
        latest_cycle = self.cycle + 1
        while True:
            while self.kept and sum(self.kept[0]) <= self.next_id:
                self.kept.pop(0)
            if self.next_id + tokens > self._end:
                if self.cycle == latest_cycle:
                    raise OverflowError(f"no {tokens} consecutive virtual ids are free")
                self.cycle += 1
                self.next_id = self._first
                self.kept = sorted(in_use())
            elif self.kept and self.kept[0][0] < self.next_id + tokens:
                self.next_id = sum(self.kept[0])
            else:
                start = self.next_id
                self.next_id += tokens
                return self.cycle * (self._end - self._first) + start - self._first
