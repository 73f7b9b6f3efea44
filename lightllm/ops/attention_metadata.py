"""What attention reads about a batch, worked out once per forward pass without asking the device for a number."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch

T = TypeVar("T")


class BidirectionalSpan(NamedTuple):
    """New tokens of one entry, the last of positions [.., end) of its context, each of which sees all up to `end`."""

    entry: int
    first: int
    """Of them, among the batch's tokens."""
    tokens: int
    end: int


NO_LENS = np.zeros((2, 0), dtype=np.int64)


@dataclasses.dataclass(eq=False)
class AttentionMetadata:
    """n entries with T tokens: first those that decode, then the prefill chunks.

    Padding entries point to the hold row with kv_len 1. Grids may depend on the host's numbers alone (entries, tokens,
    bounds), so that a captured graph serves every batch of its size. What an implementation works out for the whole round
    it keeps here (`once`): it belongs to the graph too.
    """

    rows: torch.Tensor
    """int64 [n]: row of each entry in `req_to_token`."""
    q_start: torch.Tensor
    """int32 [n + 1]: entry i computes the tokens q_start[i] .. q_start[i + 1] - 1."""
    kv_len: torch.Tensor
    """int32 [n]: context length, new tokens included."""
    req_to_token: torch.Tensor
    """int32 [max_rows + 1, max_len]: slot of each position of each row."""
    num_decode: int
    """Entries that decode."""
    num_tokens: int
    """T"""
    max_q_len: int
    """At least the largest q_len."""
    max_kv_len: int
    """At least the largest `kv_len`; in a captured graph the longest context there can be."""
    num_decode_tokens: int = -1
    """Tokens of the entries that decode; -1: one each. Tokens of one entry see each other causally, as those of a chunk."""
    no_prefix: bool = False
    """No prefill chunk has a cached prefix: its keys and values are all among the batch's own."""
    prefill_lens: np.ndarray = dataclasses.field(default_factory=lambda: NO_LENS)
    """int64 [2, num_prefill], of the host: q_len and kv_len of the prefill entries; only multi-head latent attention
    asks."""
    bidirectional: list[BidirectionalSpan] = dataclasses.field(default_factory=list)
    """In prefill chunks; all other tokens see causally."""
    num_sms: int = 0
    """Multiprocessors to fill; 0: those of the device."""

    def __post_init__(self) -> None:
        if self.num_decode_tokens < 0:
            self.num_decode_tokens = self.num_decode
        self._made: dict[Hashable, Any] = {}

    @property
    def num_prefill(self) -> int:
        return len(self.rows) - self.num_decode

    def anew(self) -> AttentionMetadata:
        """The same for another pass: nothing is worked out yet."""
        return dataclasses.replace(self)

    def once(self, key: Hashable, make: Callable[[], T]) -> T:
        """What `make` returned when it was asked for first in this round."""
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]

    def has(self, key: Hashable) -> bool:
        return key in self._made

    def decode_by_token(self) -> AttentionMetadata:
        """The entries that decode, one for each of their tokens: a token sees its context up to itself."""
        if self.num_decode_tokens == self.num_decode:
            return self
        return self.once("decode by token", self._by_token)

    def _by_token(self) -> AttentionMetadata:
        count, starts = self.num_decode_tokens, self.q_start[: self.num_decode + 1]
        entries = torch.arange(self.num_decode, device=starts.device)
        entries = torch.repeat_interleave(entries, starts.diff(), output_size=count)
        tokens = torch.arange(count + 1, device=starts.device, dtype=torch.int32)
        later = self.q_start[1:][entries] - 1 - tokens[:-1]
        return dataclasses.replace(
            self,
            rows=self.rows[entries],
            q_start=tokens,
            kv_len=self.kv_len[entries] - later,
            num_decode=count,
            num_tokens=count,
            max_q_len=1,
            prefill_lens=NO_LENS,
        )

    def prefill_pieces(self, tokens: int) -> list[AttentionMetadata]:
        """Some prefill entries each, in order, whose contexts are `tokens` long together; a longer one is alone.
        Their tokens are numbered as here."""
        pieces = cut_lengths(self.prefill_lens[1], tokens)
        return (
            [self] if len(pieces) == 1 else self.once(("pieces", tokens), lambda: [*map(self._piece, pieces)])
        )

    def _piece(self, entries: slice) -> AttentionMetadata:
        lens = self.prefill_lens[:, entries]
        first, stop = self.num_decode + entries.start, self.num_decode + entries.stop
        return dataclasses.replace(
            self,
            rows=self.rows[first:stop],
            q_start=self.q_start[first : stop + 1],
            kv_len=self.kv_len[first:stop],
            num_decode=0,
            num_decode_tokens=0,
            num_tokens=int(lens[0].sum()),
            prefill_lens=lens,
        )

    @functools.cached_property
    def context_start(self) -> torch.Tensor:
        """int32 [num_prefill + 1]: where each prefill entry's context begins when they are put one after another."""
        lengths = self.kv_len[self.num_decode :]
        start = torch.zeros(len(lengths) + 1, dtype=torch.int32, device=lengths.device)
        torch.cumsum(lengths, 0, dtype=torch.int32, out=start[1:])
        return start


def cut_lengths(lengths: np.ndarray, total: int) -> list[slice]:
    """Neighbours that add up to at most `total`; one that is longer is alone."""
    ends = np.cumsum(lengths)
    pieces, first = [], 0
    while first < len(ends):
        before = ends[first] - lengths[first]
        stop = max(int(np.searchsorted(ends, before + total, side="right")), first + 1)
        pieces.append(slice(first, stop))
        first = stop
    return pieces
