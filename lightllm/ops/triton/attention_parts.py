"""Cuts the work of attention into parts of about equal length, on the device: once a round, not once a layer.

Decode: contexts are cut so that the programs of the decode kernel fill the GPU's multiprocessors evenly, however ragged
the batch is. Prefill: chunks are cut into tiles of queries.
"""

from __future__ import annotations

import dataclasses
import functools

import torch
import triton
import triton.language as tl

from lightllm.ops.attention_metadata import AttentionMetadata
from lightllm.ops.triton.launch import cdiv, pdl_options

BLOCK_ENTRIES = 128
BLOCK_PARTS = 32
RESIDENT = 2
"""Programs of a decode kernel that a multiprocessor holds at a time, where the kernel does not say otherwise."""
_WAVES = 4
"""Parts for each place on the GPU when entries are many: a place that is done early takes another."""
COUNTS = ["n", "bound", "divisor", "part", "window", "counters"]


@dataclasses.dataclass(frozen=True)
class AttentionParts:
    """Entries cut into parts, one program each, which is found out on the device.

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


@triton.jit(do_not_specialize=COUNTS, do_not_specialize_on_alignment=["start_ptr", "length_ptr"])
def attention_parts_kernel(
    start_ptr, length_ptr, first_ptr, entry_of_ptr, arrived_ptr,
    n, bound, divisor, part, window, counters,
    STARTS: tl.constexpr, BLOCK_ENTRIES: tl.constexpr, BLOCK_PARTS: tl.constexpr,
):  # fmt: skip
    """count[i] = ceil(length[i] / size) parts for each of n entries; first = their running sum; see `AttentionParts`.

    STARTS: lengths are start[i + 1] - start[i] and size = part. Otherwise they are min(length[i], window) (window 0:
    length[i]) and size = sum(lengths) / divisor, rounded up to a multiple of `part`. Grid (ceil(bound / BLOCK_PARTS),):
    each program sums all entries up for itself, which is cheaper than a second launch.
    """
    program = tl.program_id(0)
    lanes = tl.arange(0, BLOCK_ENTRIES)
    parts = program * BLOCK_PARTS + tl.arange(0, BLOCK_PARTS)
    size = part
    if not STARTS:
        total = 0
        for begin in range(0, n, BLOCK_ENTRIES):
            entries = begin + lanes
            length = tl.load(length_ptr + entries, mask=entries < n, other=0)
            total += tl.sum(tl.where((window > 0) & (length > window), window, length), 0)
        size = (total + divisor - 1) // divisor
        size = tl.maximum((size + part - 1) // part, 1) * part
    finished = 0
    owner = tl.zeros((BLOCK_PARTS,), dtype=tl.int32)
    for begin in range(0, n, BLOCK_ENTRIES):
        entries = begin + lanes
        inside = entries < n
        if STARTS:
            length = tl.load(start_ptr + entries + 1, mask=inside, other=0)
            length -= tl.load(start_ptr + entries, mask=inside, other=0)
        else:
            length = tl.load(length_ptr + entries, mask=inside, other=0)
            length = tl.where((window > 0) & (length > window), window, length)
        count = (length + size - 1) // size
        ends = finished + tl.cumsum(count, 0)
        past = (ends[None, :] <= parts[:, None]) & inside[None, :]
        owner += tl.sum(past.to(tl.int32), 1)
        if program == 0:
            tl.store(first_ptr + entries, ends - count, mask=inside)
            for counter in range(0, counters):
                tl.store(arrived_ptr + counter * n + entries, tl.zeros_like(entries), mask=inside)
        finished += tl.sum(count, 0)
    tl.store(entry_of_ptr + parts, owner, mask=parts < bound)
    if program == 0:
        tl.store(first_ptr + n, finished)


def decode_work(
    metadata: AttentionMetadata,
    window: int,
    programs: int,
    block: int,
    heads: int,
    value_dim: int,
    resident: int = RESIDENT,
) -> tuple[AttentionParts, PartialResults, dict[str, bool]]:
    """What a decode kernel with `programs` programs a part is launched with: parts of contexts, room for their results,
    and options: right behind the kernel that makes its parts it must not start early."""
    parts, known = decode_parts(metadata, window, programs, block, resident)
    shape, device = (len(parts.entry_of), heads, value_dim), metadata.req_to_token.device

    def make_room() -> PartialResults:
        out, lse = (torch.empty(size, dtype=torch.float32, device=device) for size in (shape, shape[:2]))
        return PartialResults(out, lse)

    results = metadata.once(("partial results", *shape), make_room)
    return parts, results, pdl_options(device) if known else {"PDL": False}


def decode_parts(
    metadata: AttentionMetadata, window: int, kv_heads: int, block: int, resident: int = RESIDENT
) -> tuple[AttentionParts, bool]:
    """Parts of the decode entries' contexts (the last `window` tokens of them) for a kernel with `kv_heads` programs a
    part, cut at multiples of `block`; and whether an earlier layer has made them. resident: programs that a multiprocessor
    holds."""
    key = ("decode parts", window, kv_heads, block, resident)
    known = metadata.has(key)
    num_sms = metadata.num_sms or sm_count(metadata.req_to_token.device)
    places = max(num_sms * resident // kv_heads, 1)
    entries = metadata.num_decode
    # Few entries: sum(ceil(length / size)) <= places, so all parts are computed at once and end together.
    divisor = places - entries if places >= 2 * entries else places * _WAVES
    parts = metadata.once(
        key, lambda: _cut(None, metadata.kv_len, entries, entries + divisor, divisor, block, window, kv_heads)
    )
    return parts, known


def prefill_parts(metadata: AttentionMetadata, tokens: int) -> AttentionParts:
    """The prefill chunks' new tokens, `tokens` at a time."""
    starts = metadata.q_start[metadata.num_decode :]
    total = metadata.num_tokens - metadata.num_decode_tokens
    return metadata.once(("prefill parts", tokens), lambda: _cut_rows(starts, total, tokens))


def context_parts(metadata: AttentionMetadata, tokens: int) -> AttentionParts:
    """The prefill entries' contexts, `tokens` at a time."""
    return metadata.once(
        ("context parts", tokens),
        lambda: _cut_rows(metadata.context_start, int(metadata.prefill_lens[1].sum()), tokens),
    )


@functools.cache
def sm_count(device: torch.device) -> int:
    """Multiprocessors of a GPU; 4 where kernels are interpreted."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 4


def _cut_rows(starts: torch.Tensor, total: int, size: int) -> AttentionParts:
    """Parts of `size` rows each; starts: int32 [n + 1], whose last element is at most `total`."""
    n = len(starts) - 1
    return _cut(starts, None, n, total // size + n, 1, size, 0, 0)


def _cut(
    starts: torch.Tensor | None,
    lengths: torch.Tensor | None,
    n: int,
    bound: int,
    divisor: int,
    part: int,
    window: int,
    counters: int,
) -> AttentionParts:
    given = lengths if starts is None else starts
    assert given is not None
    # Three tensors, not one cut in three: their addresses stay multiples of 16, which kernels are specialised for.
    first, entry_of, arrived = (
        torch.empty(size, dtype=torch.int32, device=given.device) for size in (n + 1, bound, n * counters)
    )
    attention_parts_kernel[(cdiv(bound, BLOCK_PARTS),)](
        starts, lengths, first, entry_of, arrived,
        n, bound, divisor, part, window, counters,
        STARTS=starts is not None, BLOCK_ENTRIES=BLOCK_ENTRIES, BLOCK_PARTS=BLOCK_PARTS, num_warps=4,
    )  # fmt: skip
    return AttentionParts(first, entry_of, arrived)
