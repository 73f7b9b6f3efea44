"""What the Router remembers of a round until its result is there."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import numpy as np

from lightllm.router.request import Request


@dataclasses.dataclass(slots=True)  # freezing takes a few microseconds a round
class PlannedRound:
    """A result is matched by (row, generation): the generation of a row is another one once its request has left, and what
    the round brings for that request is discarded (`Running.alive`)."""

    seq: int
    rows: np.ndarray
    """int64 [entries]"""
    generations: np.ndarray
    """int64 [entries]"""
    q_len: np.ndarray
    kv_len: np.ndarray
    """int32 [entries]: context lengths afterwards, if all tokens of the decode entries count."""
    samples: np.ndarray
    sampled: int
    """Entries with samples == 1."""
    leaves: list[int]
    num_decode: int
    prefill_tokens: int
    tokens: int


@dataclasses.dataclass
class DecodeBatch:
    """The requests that decode, as a round wants them; reused from round to round until one enters or leaves."""

    rows: np.ndarray
    """int64 [n]: numpy takes half the time to index by these"""
    generations: np.ndarray
    q_len: np.ndarray
    """int32 [n]"""
    samples: np.ndarray
    """uint8 [n], all 1"""
    tokens: int
    """Of all rows."""
    rounds_left: int
    """Rounds until the first of them has all its outputs planned."""
    partial: bool = False
    """Others that decode must wait for their turn."""

    def __len__(self) -> int:
        return len(self.rows)


class Chunk(NamedTuple):
    """Tokens [start, end) of a request's context, prefilled in one round."""

    request: Request
    start: int
    end: int
