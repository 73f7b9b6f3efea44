"""What the Router remembers of a round until its result is there."""

from __future__ import annotations

import dataclasses

import numpy as np

from lightllm.router.request import Request


@dataclasses.dataclass(frozen=True)
class PlannedRound:
    """A result is matched through these lists, never by row number: a request whose epoch has moved on left its row
    while the round was in flight, and what the round yields for it is surplus."""

    seq: int
    requests: list[Request]
    """One an entry of the round."""
    epochs: list[int]
    q_len: np.ndarray
    samples: np.ndarray
    sampled: list[Request]
    """The requests with samples == 1, in order; with `sampled_epochs`."""
    sampled_epochs: list[int]
    leaves: list[int]
    num_decode: int
    prefill_tokens: int
    tokens: int

    def alive(self) -> list[tuple[Request, int]]:
        """(request, entry index) of those that have not left since."""
        pairs = zip(self.requests, self.epochs, strict=True)
        return [(request, i) for i, (request, epoch) in enumerate(pairs) if request.epoch == epoch]


@dataclasses.dataclass
class DecodeBatch:
    """The requests that decode, as a round wants them; reused from round to round until one enters or leaves."""

    requests: list[Request]
    epochs: list[int]
    rows: np.ndarray
    ones: np.ndarray
    """int32 [n]: q_len"""
    samples: np.ndarray
    """uint8 [n], all 1"""
    rounds_left: int
    """Rounds until the first of them has all its outputs planned."""
    partial: bool = False
    """Others that decode must wait for their turn."""

    @classmethod
    def of(cls, requests: list[Request], remaining: np.ndarray, partial: bool = False) -> "DecodeBatch":
        """`remaining`: outputs still to be planned, by row."""
        rows = np.array([r.row for r in requests], dtype=np.int32)
        return cls(
            requests=requests,
            epochs=[r.epoch for r in requests],
            rows=rows,
            ones=np.ones(len(rows), dtype=np.int32),
            samples=np.ones(len(rows), dtype=np.uint8),
            rounds_left=int(remaining[rows].min()) if len(rows) else 0,
            partial=partial,
        )


@dataclasses.dataclass(frozen=True)
class Chunk:
    """Tokens [start, end) of a request's context, prefilled in one round."""

    request: Request
    start: int
    end: int
