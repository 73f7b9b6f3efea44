"""What the simulation knows of each request that has not ended: columns, so that a round of many costs a few array steps."""

from __future__ import annotations

import numpy as np

PLACE_BITS = 24
_PLACES = (1 << PLACE_BITS) - 1


class LiveRequests:
    """A table whose rows ("places") are used again. A request id holds its place: `places_of(ids)`."""

    def __init__(self, size: int = 1024) -> None:
        self._free = list(range(size - 1, -1, -1))
        self._serial = 0
        self.order = np.zeros(size, dtype=np.int64)
        """Number among the accepted ones."""
        self.arrival = np.zeros(size)
        self.prompt_len = np.zeros(size, dtype=np.int32)
        self.end = np.zeros(size, dtype=np.int32)
        """Context length at which EOS is sampled."""
        self.outputs = np.zeros(size, dtype=np.int32)
        """Tokens that have come."""
        self.prefilled = np.zeros(size, dtype=np.int32)
        """Context that has been prefilled, at its longest."""
        self.first_token = np.zeros(size)
        self.last_token = np.zeros(size)
        """When they came; before the first one, the arrival."""
        self.longest_gap = np.zeros(size)
        """Between two tokens, seconds."""

    def __len__(self) -> int:
        return len(self.order) - len(self._free)

    def reserve(self) -> tuple[int, int]:
        """(id, place) for one more request."""
        if not self._free:
            self._grow()
        place = self._free.pop()
        self._serial += 1
        return self._serial << PLACE_BITS | place, place

    def enter(self, place: int, order: int, arrival: float, prompt_len: int, output_len: int) -> None:
        self.order[place] = order
        self.arrival[place] = self.last_token[place] = arrival
        self.prompt_len[place] = prompt_len
        self.end[place] = prompt_len + output_len - 1
        self.outputs[place] = self.prefilled[place] = 0
        self.longest_gap[place] = 0.0

    def leave(self, place: int) -> None:
        self._free.append(place)

    def _grow(self) -> None:
        size = len(self.order)
        if size > _PLACES // 2:
            raise RuntimeError(f"{size} requests are waiting or running: more than a simulation can hold")
        for name, column in vars(self).items():
            if isinstance(column, np.ndarray):
                setattr(self, name, np.concatenate([column, np.zeros_like(column)]))
        self._free = list(range(2 * size - 1, size - 1, -1))


def places_of(ids: list[int]) -> np.ndarray:
    """int64 [n]"""
    return np.array(ids, dtype=np.int64) & _PLACES
