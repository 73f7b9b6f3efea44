"""What every layer's attention needs to know about a batch, worked out once per forward pass."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import ClassVar, Protocol

import numpy as np
import torch

from lightllm.ops.attention_backend import TRITON, AttentionBackends
from lightllm.ops.gpu_attention_plan import GpuAttentionPlan, cut_lengths


@dataclasses.dataclass(frozen=True)
class EntryPlan:
    """One entry (request) of a batch."""

    start: int
    """Its first position among the batch's tokens."""
    q_len: int
    kv_len: int
    first_slot: int
    """Where its context begins if the slots are one ascending run; -1 if not."""
    slots: torch.Tensor | None
    """int64 [kv_len]: the slots of its context; None where they are one run and can be read in place."""
    mask: torch.Tensor | None
    """float [q_len, kv_len]: 0 where a token may look, -inf where not; None if `causal` or if it may look at all."""
    causal: bool
    """The context is made of the new tokens alone, more than one."""


@dataclasses.dataclass(frozen=True)
class PaddedContexts:
    """Short contexts of all n decode entries side by side: one gather and one product for all of them."""

    slots: torch.Tensor
    """int64 [n * length]: past its end a context repeats its first slot."""
    mask: torch.Tensor | None
    """float [n, 1, 1, length]: 0 inside a context, -inf past its end; None if all are equally long."""
    length: int
    kv_lens: torch.Tensor
    """int64 [n]"""


@dataclasses.dataclass(frozen=True)
class AttentionPlan:
    """On a CPU: the entries of a batch, first those that decode (q_len 1), then the prefill chunks."""

    num_decode: int
    padded: PaddedContexts | None
    """The decode entries, if they are computed together; then `decode` is empty."""
    decode: list[EntryPlan]
    prefill: list[EntryPlan]
    longest_gather: int
    """Tokens of the longest context whose slots are not one run."""
    reads_fresh: ClassVar[bool] = False
    """As of `GpuAttentionPlan`: a CPU reads runs of slots in place."""

    @property
    def num_prefill(self) -> int:
        return len(self.prefill)

    def prefill_pieces(self, tokens: int) -> list[AttentionPlan]:
        """As of `GpuAttentionPlan`."""
        pieces = cut_lengths(np.array([entry.kv_len for entry in self.prefill]), tokens)
        return [dataclasses.replace(self, prefill=self.prefill[piece]) for piece in pieces]


class PlannedBatch(Protocol):
    """What a plan is made of: see `ops.batch.Batch`."""

    input_ids: torch.Tensor
    rows: torch.Tensor
    q_start: torch.Tensor
    kv_len: torch.Tensor
    num_decode: int
    max_q_len: int
    max_kv_len: int
    fresh: bool
    prefill_lens: np.ndarray
    req_to_token: torch.Tensor


_PADDED_BYTES = 128 * 1024
"""Keys and values of one context up to which copying it costs less than computing it on its own (0.03 ms a layer)."""
_PADDED_ENTRIES = 4


def plan_attention(
    batch: PlannedBatch, dtype: torch.dtype, token_bytes: int, backends: AttentionBackends = TRITON
) -> AttentionPlan | GpuAttentionPlan:
    """dtype: the queries' dtype; token_bytes: of one token's keys and values in one layer; backends: on a GPU."""
    if batch.req_to_token.is_cuda:
        return GpuAttentionPlan(
            rows=batch.rows,
            q_start=batch.q_start,
            kv_len=batch.kv_len,
            req_to_token=batch.req_to_token,
            num_decode=batch.num_decode,
            num_tokens=len(batch.input_ids),
            max_q_len=batch.max_q_len,
            max_kv_len=batch.max_kv_len,
            fresh=batch.fresh,
            prefill_lens=batch.prefill_lens,
            backends=backends,
        )
    return plan_on_cpu(
        batch.rows.tolist(),
        batch.q_start.diff().tolist(),
        batch.kv_len.tolist(),
        batch.num_decode,
        batch.req_to_token,
        dtype,
        token_bytes,
    )


def plan_on_cpu(
    rows: Sequence[int],
    q_lens: Sequence[int],
    kv_lens: Sequence[int],
    num_decode: int,
    req_to_token: torch.Tensor,
    dtype: torch.dtype,
    token_bytes: int,
) -> AttentionPlan:
    """The plan of a batch with n entries.

    rows: row of each entry in `req_to_token` (int32 [max_rows + 1, max_len]: slot of each position); q_lens, kv_lens:
    new tokens and context length afterwards; num_decode: how many entries at the front have q_len 1 and come from
    decoding; dtype: of the masks (the queries' dtype); token_bytes: of one token's keys and values in one layer.
    """
    table = req_to_token.numpy()
    longest = max(kv_lens[:num_decode], default=0)
    padded = None
    if num_decode >= _PADDED_ENTRIES and longest * token_bytes <= _PADDED_BYTES:
        padded = _pad(rows[:num_decode], kv_lens[:num_decode], longest, table, dtype, req_to_token.device)
    first = num_decode if padded else 0
    entries = []
    start, longest_gather = first, 0
    for row, q_len, kv_len in zip(rows[first:], q_lens[first:], kv_lens[first:]):
        entry = _plan_entry(start, q_len, kv_len, table[row, :kv_len], dtype, req_to_token.device)
        if entry.slots is not None:
            longest_gather = max(longest_gather, kv_len)
        entries.append(entry)
        start += q_len
    decode = num_decode - first
    return AttentionPlan(num_decode, padded, entries[:decode], entries[decode:], longest_gather)


def _pad(
    rows: Sequence[int],
    kv_lens: Sequence[int],
    longest: int,
    table: np.ndarray,
    dtype: torch.dtype,
    device: torch.device,
) -> PaddedContexts:
    slots = table[list(rows), :longest].astype(np.int64)
    lengths = torch.tensor(kv_lens)
    if min(kv_lens) == longest:
        return PaddedContexts(torch.from_numpy(slots.ravel()).to(device), None, longest, lengths.to(device))
    inside = np.arange(longest) < np.asarray(kv_lens)[:, None]
    slots = np.where(inside, slots, slots[:, :1])
    mask = torch.zeros(inside.shape, dtype=dtype)
    mask.masked_fill_(torch.from_numpy(~inside), float("-inf"))
    return PaddedContexts(
        torch.from_numpy(slots.ravel()).to(device),
        mask[:, None, None].to(device),
        longest,
        lengths.to(device),
    )


def _plan_entry(
    start: int, q_len: int, kv_len: int, slots: np.ndarray, dtype: torch.dtype, device: torch.device
) -> EntryPlan:
    first = int(slots[0])
    gather = None
    if kv_len > 1 and (slots[-1] - first != kv_len - 1 or not np.all(slots[1:] - slots[:-1] == 1)):
        gather = torch.from_numpy(slots.astype(np.int64)).to(device)
        first = -1
    causal = q_len > 1 and q_len == kv_len
    mask = None
    if q_len > 1 and not causal:
        mask = torch.full((q_len, kv_len), float("-inf"), dtype=dtype, device=device)
        mask.triu_(kv_len - q_len + 1)
    return EntryPlan(start, q_len, kv_len, first, gather, mask, causal)
