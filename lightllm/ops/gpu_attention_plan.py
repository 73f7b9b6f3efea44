"""What the attention kernels read about a batch: tensors on the device, worked out without asking it for a number."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Hashable
from typing import Any, TypeVar

import numpy as np
import torch

from lightllm.ops.attention_backend import TRITON, AttentionBackends

T = TypeVar("T")
NO_LENS = np.zeros((2, 0), dtype=np.int64)


@dataclasses.dataclass(eq=False)
class GpuAttentionPlan:
    """n entries with T tokens: first those that decode (q_len 1), then the prefill chunks.

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
    num_tokens: int
    """T"""
    max_q_len: int
    """At least the largest q_len."""
    max_kv_len: int
    """At least the largest `kv_len`."""
    fresh: bool = False
    """No prefill chunk has a cached prefix: its keys and values are all among the batch's own."""
    prefill_lens: np.ndarray = dataclasses.field(default_factory=lambda: NO_LENS)
    """int64 [2, num_prefill], of the host: q_len and kv_len of the prefill entries; only multi-head latent attention
    asks."""
    backends: AttentionBackends = TRITON
    num_sms: int = 0
    """Multiprocessors to fill; 0: those of the device."""

    def __post_init__(self) -> None:
        self.num_sms = self.num_sms or sm_count(self.req_to_token.device)
        self._made: dict[Hashable, Any] = {}

    @property
    def num_prefill(self) -> int:
        return len(self.rows) - self.num_decode

    @property
    def reads_fresh(self) -> bool:
        """Prefill reads the new tokens' keys and values where a layer hands them over, not by slot."""
        return self.fresh and self.num_prefill > 0 and self.backends.prefill.reads_fresh

    def once(self, key: Hashable, make: Callable[[], T]) -> T:
        """What `make` returned when it was asked for first in this round."""
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]

    def has(self, key: Hashable) -> bool:
        return key in self._made

    def prefill_pieces(self, tokens: int) -> list[GpuAttentionPlan]:
        """Plans of some prefill entries each, in order, whose contexts are `tokens` long together; a longer one is alone.
        Their tokens are numbered as in this plan."""
        pieces = cut_lengths(self.prefill_lens[1], tokens)
        return (
            [self] if len(pieces) == 1 else self.once(("pieces", tokens), lambda: [*map(self._piece, pieces)])
        )

    def _piece(self, entries: slice) -> GpuAttentionPlan:
        lens = self.prefill_lens[:, entries]
        first, stop = self.num_decode + entries.start, self.num_decode + entries.stop
        return dataclasses.replace(
            self,
            rows=self.rows[first:stop],
            q_start=self.q_start[first : stop + 1],
            kv_len=self.kv_len[first:stop],
            num_decode=0,
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


@functools.cache
def sm_count(device: torch.device) -> int:
    """Multiprocessors of a GPU; 4 where kernels are interpreted."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 4
