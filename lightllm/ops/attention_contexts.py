"""Where the contexts of a batch lie in KV memory, for attention in torch: found once per forward pass, on the host."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch

from lightllm.ops.attention_metadata import AttentionMetadata


@dataclasses.dataclass(frozen=True)
class EntryContext:
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
class Contexts:
    """The entries of a batch, first those that decode (one token each), then the prefill chunks."""

    padded: PaddedContexts | None
    """The decode entries, if they are computed together; then `decode` is empty."""
    decode: list[EntryContext]
    prefill: list[EntryContext]
    longest_gather: int
    """Tokens of the longest context whose slots are not one run."""


PADDED_BYTES = 128 * 1024
"""Keys and values of one context up to which copying it costs less than computing it on its own (0.03 ms a layer)."""
_PADDED_ENTRIES = 4


def contexts_of(metadata: AttentionMetadata, dtype: torch.dtype, slot_bytes: int) -> Contexts:
    """Where the contexts of a batch lie, found once a round. dtype: of the masks (the queries' dtype); slot_bytes: of one
    token's keys and values in one layer."""
    return metadata.once(("contexts", dtype, slot_bytes), lambda: _find(metadata, dtype, slot_bytes))


def _find(metadata: AttentionMetadata, dtype: torch.dtype, slot_bytes: int) -> Contexts:
    table, device = metadata.req_to_token.numpy(), metadata.req_to_token.device
    rows, kv_lens, starts = metadata.rows.tolist(), metadata.kv_len.tolist(), metadata.q_start.tolist()
    num_decode = metadata.num_decode
    longest = max(kv_lens[:num_decode], default=0)
    padded = None
    if num_decode >= _PADDED_ENTRIES and longest * slot_bytes <= PADDED_BYTES:
        padded = _pad(rows[:num_decode], kv_lens[:num_decode], longest, table, dtype, device)
    entries = []
    for index in range(num_decode if padded else 0, len(rows)):
        kv_len, start = kv_lens[index], starts[index]
        slots = table[rows[index], :kv_len]
        entries.append(_find_entry(start, starts[index + 1] - start, kv_len, slots, dtype, device))
    decode = 0 if padded else num_decode
    longest_gather = max((entry.kv_len for entry in entries if entry.slots is not None), default=0)
    return Contexts(padded, entries[:decode], entries[decode:], longest_gather)


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


def _find_entry(
    start: int, q_len: int, kv_len: int, slots: np.ndarray, dtype: torch.dtype, device: torch.device
) -> EntryContext:
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
    return EntryContext(start, q_len, kv_len, first, gather, mask, causal)


def gather_buffer(kv: torch.Tensor, contexts: Contexts) -> torch.Tensor | None:
    """One buffer for all gathered contexts of a layer: it stays in the cache, and is not paged in anew each time."""
    if not contexts.longest_gather:
        return None
    return torch.empty((contexts.longest_gather, *kv.shape[1:]), dtype=kv.dtype, device=kv.device)


def context_of(
    kv: torch.Tensor, entry: EntryContext, buffer: torch.Tensor | None, window: int = 0
) -> torch.Tensor:
    """What `kv` holds of an entry's context, or of the last `window` tokens of it: [tokens, *kv.shape[1:]]."""
    length = min(window, entry.kv_len) if window else entry.kv_len
    skipped = entry.kv_len - length
    if entry.slots is None:
        return kv.narrow(0, entry.first_slot + skipped, length)
    assert buffer is not None
    context = buffer.narrow(0, 0, length)
    torch.index_select(kv, 0, entry.slots[skipped:] if skipped else entry.slots, out=context)
    return context
