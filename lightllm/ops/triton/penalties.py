"""Penalties for listed tokens, in place: a program for each row, so that an id that is listed twice is read before any of
them is written."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from lightllm.ops.triton.launch import cdiv

BLOCK, PAIRS = 1024, 128


@triton.jit(do_not_specialize=["listed"], do_not_specialize_on_alignment=["frequency_ptr", "presence_ptr"])
def penalties_kernel(
    logits_ptr, entries_ptr, ids_ptr, counts_ptr, repetition_ptr, frequency_ptr, presence_ptr, scratch_ptr,
    stride, listed, BLOCK: tl.constexpr,
):  # fmt: skip
    """For row i and each of its `listed` ids: x = logits[entries[i], id]; x / r where x > 0, else x * r; minus count * f;
    minus p where count > 0. Grid (rows,). An entry times the stride needs 64 bits."""
    row = tl.program_id(0).to(tl.int64)
    logits_ptr += tl.load(entries_ptr + row).to(tl.int64) * stride
    ids_ptr += row * listed
    counts_ptr += row * listed
    scratch_ptr += row * listed
    repetition = tl.load(repetition_ptr + row)
    frequency = tl.load(frequency_ptr + row)
    presence = tl.load(presence_ptr + row)
    for start in range(0, listed, BLOCK):
        place = start + tl.arange(0, BLOCK)
        inside = place < listed
        count = tl.load(counts_ptr + place, mask=inside, other=0.0)
        x = tl.load(logits_ptr + tl.load(ids_ptr + place, mask=inside, other=0), mask=inside, other=0.0)
        x = tl.where(x > 0, x / repetition, x * repetition)
        x -= count * frequency
        x -= tl.where(count > 0, presence, 0.0)
        tl.store(scratch_ptr + place, x, mask=inside)
    tl.debug_barrier()
    for start in range(0, listed, BLOCK):
        place = start + tl.arange(0, BLOCK)
        inside = place < listed
        x = tl.load(scratch_ptr + place, mask=inside)
        tl.store(logits_ptr + tl.load(ids_ptr + place, mask=inside, other=0), x, mask=inside)


@triton.jit(do_not_specialize=["pairs"])
def grow_end_tokens_kernel(logits_ptr, entries_ptr, ids_ptr, growth_ptr, stride, pairs, BLOCK: tl.constexpr):
    """x = logits[entries[i], ids[i]]; x += |x| * growth[i]. Grid (ceil(pairs / BLOCK),)."""
    pair = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = pair < pairs
    place = tl.load(entries_ptr + pair, mask=inside, other=0).to(tl.int64) * stride
    place += tl.load(ids_ptr + pair, mask=inside, other=0)
    x = tl.load(logits_ptr + place, mask=inside, other=0.0)
    x += tl.abs(x) * tl.load(growth_ptr + pair, mask=inside, other=0.0)
    tl.store(logits_ptr + place, x, mask=inside)


def penalize_tokens_(
    logits: torch.Tensor,
    entries: torch.Tensor,
    token_ids: torch.Tensor,
    counts: torch.Tensor,
    repetition: torch.Tensor,
    frequency: torch.Tensor,
    presence: torch.Tensor,
) -> None:
    rows, listed = token_ids.shape
    if rows == 0 or listed == 0:
        return
    assert logits.stride(1) == 1 and token_ids.is_contiguous() and counts.is_contiguous()
    assert repetition.stride(0) == frequency.stride(0) == presence.stride(0) == 1 or rows == 1
    penalties_kernel[(rows,)](
        logits, entries, token_ids, counts, repetition, frequency, presence, torch.empty_like(counts),
        logits.stride(0), listed, BLOCK=BLOCK, num_warps=8,
    )  # fmt: skip


def grow_end_tokens_(
    logits: torch.Tensor, entries: torch.Tensor, token_ids: torch.Tensor, growth: torch.Tensor
) -> None:
    pairs = len(entries)
    if pairs:
        assert logits.stride(1) == 1
        grow_end_tokens_kernel[(cdiv(pairs, PAIRS),)](
            logits, entries, token_ids, growth, logits.stride(0), pairs, BLOCK=PAIRS, num_warps=4
        )
