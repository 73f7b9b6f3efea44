"""What the attention kernels read about a batch: tensors on the device, worked out without asking it for a number.

Grids depend on the host's bounds alone (entries, tokens, SMs), so a captured graph serves every batch of its size;
who computes what is found out on the device: `AttentionParts`.
"""

from __future__ import annotations

import dataclasses
import functools

import torch


@dataclasses.dataclass(frozen=True)
class AttentionParts:
    """The entries' tokens cut into parts of about equal length, one program each.

    Part p belongs to entry `entry_of[p]` (n, the number of entries, beyond the last part); entry i has the parts
    first[i] .. first[i + 1] - 1.
    """

    first: torch.Tensor
    """int32 [n + 1]"""
    entry_of: torch.Tensor
    """int32 [bound]: as many as there can be."""
    arrived: torch.Tensor
    """int32 [n * counters]: zeros. Kernels count finished parts in it and leave zeros."""


@dataclasses.dataclass(frozen=True)
class PartialResults:
    """Where the parts of a context leave what the last of them puts together; shared by all layers."""

    out: torch.Tensor
    """float32 [parts, heads, value_dim]"""
    lse: torch.Tensor
    """float32 [parts, heads]: base-2 logarithm of each part's softmax denominator."""


@dataclasses.dataclass(eq=False)
class GpuAttentionPlan:
    """n entries with T tokens: first those that decode (q_len 1), then the prefill chunks.

    Padding entries point to the hold row with kv_len 1. Parts are made when a layer asks for them first, and kept: in a
    captured graph they are part of it.
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
    num_sms: int = 0
    """Multiprocessors to fill; 0: those of the device."""

    def __post_init__(self) -> None:
        self.num_sms = self.num_sms or sm_count(self.req_to_token.device)
        self._parts: dict[tuple[int, ...], AttentionParts] = {}
        self._partial: dict[tuple[int, int, int], PartialResults] = {}

    @property
    def num_prefill(self) -> int:
        return len(self.rows) - self.num_decode

    def decode_parts(self, window: int, kv_heads: int, block: int) -> AttentionParts:
        """Contexts (the last `window` tokens of them) of the decode entries, cut at multiples of `block`."""
        key = (window, kv_heads, block)
        if key not in self._parts:
            from lightllm.ops.triton.attention_parts import cut_contexts

            self._parts[key] = cut_contexts(self, window, kv_heads, block)
        return self._parts[key]

    def prefill_parts(self, tokens: int) -> AttentionParts:
        """The prefill chunks' new tokens, `tokens` at a time."""
        key = (tokens,)
        if key not in self._parts:
            from lightllm.ops.triton.attention_parts import cut_rows

            starts = self.q_start[self.num_decode :]
            self._parts[key] = cut_rows(starts, self.num_tokens - self.num_decode, tokens)
        return self._parts[key]

    @functools.cached_property
    def context_start(self) -> torch.Tensor:
        """int32 [num_prefill + 1]: where each prefill entry's context begins when they are put one after another."""
        lengths = self.kv_len[self.num_decode :]
        start = torch.zeros(len(lengths) + 1, dtype=torch.int32, device=lengths.device)
        torch.cumsum(lengths, 0, dtype=torch.int32, out=start[1:])
        return start

    def context_parts(self, tokens: int) -> AttentionParts:
        """The prefill entries' contexts, `tokens` at a time."""
        key = (-1, tokens)
        if key not in self._parts:
            from lightllm.ops.triton.attention_parts import cut_rows

            self._parts[key] = cut_rows(self.context_start, self.prefill_kv_len, tokens)
        return self._parts[key]

    def partial_results(self, parts: int, heads: int, value_dim: int) -> PartialResults:
        key = (parts, heads, value_dim)
        if key not in self._partial:
            device = self.req_to_token.device
            self._partial[key] = PartialResults(
                torch.empty((parts, heads, value_dim), dtype=torch.float32, device=device),
                torch.empty((parts, heads), dtype=torch.float32, device=device),
            )
        return self._partial[key]


@functools.cache
def sm_count(device: torch.device) -> int:
    """Multiprocessors of a GPU; 4 where kernels are interpreted."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 4
