"""What every layer's attention needs to know about a batch, worked out once per forward pass."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch


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
class AttentionPlan:
    """The entries of a batch: first those that decode (q_len 1), then the prefill chunks."""

    decode: list[EntryPlan]
    prefill: list[EntryPlan]
    longest_gather: int
    """Tokens of the longest context whose slots are not one run."""

    @property
    def num_decode_tokens(self) -> int:
        return len(self.decode)


def plan_attention(
    rows: Sequence[int],
    q_lens: Sequence[int],
    kv_lens: Sequence[int],
    num_decode: int,
    req_to_token: torch.Tensor,
    dtype: torch.dtype,
) -> AttentionPlan:
    """The plan of a batch with n entries.

    rows: row of each entry in `req_to_token` (int32 [max_rows + 1, max_len]: slot of each position); q_lens, kv_lens:
    new tokens and context length afterwards; num_decode: how many entries at the front have q_len 1 and come from
    decoding; dtype: of the masks (the queries' dtype).
    """
    table = req_to_token.numpy() if req_to_token.device.type == "cpu" else req_to_token.cpu().numpy()
    entries = []
    start = longest_gather = 0
    for row, q_len, kv_len in zip(rows, q_lens, kv_lens):
        slots = table[row, :kv_len]
        first = int(slots[0])
        gather = None
        if kv_len > 1 and (slots[-1] - first != kv_len - 1 or not np.all(slots[1:] - slots[:-1] == 1)):
            gather = torch.from_numpy(slots.astype(np.int64)).to(req_to_token.device)
            first = -1
            longest_gather = max(longest_gather, kv_len)
        causal = q_len > 1 and q_len == kv_len
        mask = None
        if q_len > 1 and not causal:
            mask = torch.full((q_len, kv_len), float("-inf"), dtype=dtype, device=req_to_token.device)
            mask.triu_(kv_len - q_len + 1)
        entries.append(EntryPlan(start, q_len, kv_len, first, gather, mask, causal))
        start += q_len
    return AttentionPlan(entries[:num_decode], entries[num_decode:], longest_gather)
