"""What the Router remembers of a round until its result is there."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import numpy as np

from lightllm.router.request import Request


@dataclasses.dataclass(slots=True)  # freezing takes a few microseconds a round
class PlannedRound:
    """A result is matched through these lists, never by row number alone: who left its row while the round was in flight
    ended a stay there, and what the round yields for it is surplus."""

    seq: int
    rows: np.ndarray
    """int64 [entries]"""
    stays: np.ndarray
    """int64 [entries]: the stay in its row that each request was in."""
    stays_now: np.ndarray
    """int64 [rows], `Running`'s own: the stay that each row is in now."""
    by_row: list[Request | None]
    """`Running`'s own: who is in each row now."""
    q_len: np.ndarray
    samples: np.ndarray
    sampled: np.ndarray
    """int64 [tokens of the result]: the rows with samples == 1, in order."""
    last: list[int]
    """Positions in `sampled` of those whose last output this is."""
    leaves: list[int]
    num_decode: int
    prefill_tokens: int
    tokens: int

    def alive(self) -> list[tuple[Request, int]]:
        """(request, entry index) of those that have not left since."""
        entries = self._stayed().nonzero()[0].tolist()
        return [(request, i) for i in entries if (request := self.by_row[self.rows[i]]) is not None]

    def request_of(self, entry: int) -> Request | None:
        """Of this entry; None if it has left since."""
        return self.by_row[self.rows[entry]] if self._stayed()[entry] else None

    def sampled_alive(self) -> np.ndarray:
        """bool [sampled]: who has not left since."""
        return self._stayed()[self.samples == 1]

    def has(self, request: Request) -> bool:
        """Whether it computes something for a request that has a row now."""
        return bool(self._stayed()[self.rows == request.row].any())

    def _stayed(self) -> np.ndarray:
        return self.stays_now[self.rows] == self.stays


@dataclasses.dataclass
class DecodeBatch:
    """The requests that decode, as a round wants them; reused from round to round until one enters or leaves."""

    rows: np.ndarray
    """int64 [n]: numpy takes half the time to index by these"""
    stays: np.ndarray
    ones: np.ndarray
    """int32 [n]: q_len"""
    samples: np.ndarray
    """uint8 [n], all 1"""
    rounds_left: int
    """Rounds until the first of them has all its outputs planned."""
    partial: bool = False
    """Others that decode must wait for their turn."""

    def __len__(self) -> int:
        return len(self.rows)

    @classmethod
    def of(
        cls, rows: np.ndarray, remaining: np.ndarray, stays: np.ndarray, partial: bool = False
    ) -> "DecodeBatch":
        """int64 [n] `rows`. `remaining`: outputs still to be planned, and `stays`, both by row."""
        return cls(
            rows=rows,
            stays=stays[rows],
            ones=np.ones(len(rows), dtype=np.int32),
            samples=np.ones(len(rows), dtype=np.uint8),
            rounds_left=int(remaining[rows].min()) if len(rows) else 0,
            partial=partial,
        )


class Chunk(NamedTuple):
    """Tokens [start, end) of a request's context, prefilled in one round."""

    request: Request
    start: int
    end: int
