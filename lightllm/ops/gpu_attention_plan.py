"""What the attention kernels read about a batch: tensors on the device, worked out without asking it for a number."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Hashable
from typing import Any, TypeVar

import torch

from lightllm.ops.attention_backend import TRITON, AttentionBackends

T = TypeVar("T")


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
    prefill_kv_len: int = 0
    """Sum of `kv_len` over the prefill entries, or more; only multi-head latent attention asks."""
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

    @functools.cached_property
    def context_start(self) -> torch.Tensor:
        """int32 [num_prefill + 1]: where each prefill entry's context begins when they are put one after another."""
        lengths = self.kv_len[self.num_decode :]
        start = torch.zeros(len(lengths) + 1, dtype=torch.int32, device=lengths.device)
        torch.cumsum(lengths, 0, dtype=torch.int32, out=start[1:])
        return start


@functools.cache
def sm_count(device: torch.device) -> int:
    """Multiprocessors of a GPU; 4 where kernels are interpreted."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 4
