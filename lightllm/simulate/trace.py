"""Requests in time: what a trace is, and the token ids that stand for its prompts.

Prompts say nothing, but they are as equal as the trace's: what two requests share, and nothing else, has equal ids. Most
are views of one long array that counts upward, so that a million prompts cost nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Protocol

import numpy as np

EOS = 2
WORD = 7
"""Every generated token but the last one."""


@dataclasses.dataclass(frozen=True, slots=True)
class TraceRequest:
    arrival: float
    """Seconds since the trace began."""
    prompt_ids: np.ndarray
    """int32"""
    output_len: int
    """Tokens until EOS, that one included: the truth, which no scheduler knows."""


class Trace(Protocol):
    @property
    def name(self) -> str: ...

    @property
    def max_new_tokens(self) -> int:
        """What its clients declare, unless --max-new-tokens says otherwise."""

    def requests(self, count: int, rate: float, seed: int) -> Iterator[TraceRequest]:
        """At most `count` requests in the order of arrival, `rate` a second on the average (inf: all at once). The same
        arguments give the same requests, and other rates the same ones faster or slower."""


_COUNTING = np.arange(1 << 22, dtype=np.int32)
_FIRST_UNIQUE = 1 << 10
_REGION = len(_COUNTING) // 2


def unique_ids(serial: int, length: int) -> np.ndarray:
    """int32 [length]: a text that shares no prefix with those of the two million serials around it."""
    start = _FIRST_UNIQUE + serial % (_REGION - _FIRST_UNIQUE)
    if length > _REGION:
        return np.arange(start, start + length, dtype=np.int32)
    return _COUNTING[start : start + length]


def words(count: int) -> np.ndarray:
    """int32 [count]: what the simulated model has generated, but for the EOS."""
    return np.full(count, WORD, dtype=np.int32)
