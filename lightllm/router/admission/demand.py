"""What requests ask of KV memory, one column a fact: what admission is decided from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Demand(NamedTuple):
    """Requests in the order in which they are prefilled; int64 [n] each, but for the two that are bool [n]."""

    held: np.ndarray
    """Slots of its whole context, without those that other requests are counted with."""
    generated: np.ndarray
    limit: np.ndarray
    """Most tokens of its output, those `generated` included."""
    exact: np.ndarray
    """bool: the output will have `limit` tokens; neither EOS nor a stop string ends it."""
    work: np.ndarray
    """Tokens of its context that are still to be computed; 0 past the prefill."""
    waits: np.ndarray
    """bool: it may sit out rounds in which a prefill ahead of it computes what it needs too."""

    @classmethod
    def of(cls, requests: Sequence[tuple[int, int, int, bool, int, bool]]) -> Demand:
        """One tuple of (held, generated, limit, exact, work, waits) a request."""
        held, generated, limit, exact, work, waits = np.array(requests, dtype=np.int64).reshape(-1, 6).T
        return cls(held, generated, limit, exact.astype(bool), work, waits.astype(bool))

    @classmethod
    def decoding(
        cls, held: np.ndarray, generated: np.ndarray, limit: np.ndarray, exact: np.ndarray
    ) -> Demand:
        """Requests past their prefill."""
        return cls(held, generated, limit, exact, np.zeros_like(held), np.zeros(len(held), dtype=bool))

    @property
    def size(self) -> int:
        return len(self.held)

    @property
    def to_limit(self) -> np.ndarray:
        """int64 [n]: slots that each takes if it runs to its limit."""
        return np.maximum(self.limit - self.generated, 1)
