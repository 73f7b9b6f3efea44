"""Sorts the pairs (token, one of its experts) by expert, and cuts each expert's run into blocks of rows for a grouped GEMM.

Two kernels with a program for each expert: one counts the expert's pairs, the other writes them down in order. No atomics,
so every run gives the same order; no number goes to the host, so that graphs can be captured.
"""

from __future__ import annotations

import dataclasses

import torch
import triton
import triton.language as tl

from lightllm.ops.triton.launch import next_power_of_2

SCAN = 1024
"""Pairs looked at together."""


@dataclasses.dataclass(frozen=True)
class AlignedPairs:
    """Pair i is token i // top_k and its expert number i % top_k. N pairs, at most B blocks."""

    pairs: torch.Tensor
    """int32 [N]: sorted by expert, within an expert ascending."""
    ends: torch.Tensor
    """int32 [experts]: where each expert's run in `pairs` ends."""
    block_expert: torch.Tensor
    """int32 [B]"""
    block_start: torch.Tensor
    """int32 [B]: the block's first place in `pairs`."""
    num_blocks: torch.Tensor
    """int32 [1]: those after it hold nothing."""


@triton.jit(do_not_specialize=["n"])
def count_pairs_kernel(experts_ptr, counts_ptr, n, SCAN: tl.constexpr):
    """counts[e] = how often e occurs in experts [n]. Grid (experts,)."""
    expert = tl.program_id(0)
    offsets = tl.arange(0, SCAN)
    found = tl.zeros((SCAN,), dtype=tl.int32)
    for start in range(0, n, SCAN):
        found += (tl.load(experts_ptr + start + offsets, mask=start + offsets < n, other=-1) == expert).to(
            tl.int32
        )
    tl.store(counts_ptr + expert, tl.sum(found, 0))


@triton.jit(do_not_specialize=["n"])
def place_pairs_kernel(
    experts_ptr, counts_ptr, pairs_ptr, ends_ptr, block_expert_ptr, block_start_ptr, num_blocks_ptr, n,
    EXPERTS: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_M: tl.constexpr, SCAN: tl.constexpr,
):  # fmt: skip
    """Writes one expert's part of `AlignedPairs`, with blocks of BLOCK_M pairs. Grid (experts,)."""
    expert = tl.program_id(0)
    all_experts = tl.arange(0, BLOCK_E)
    counts = tl.load(counts_ptr + all_experts, mask=all_experts < EXPERTS, other=0)
    blocks = (counts + BLOCK_M - 1) // BLOCK_M
    before = all_experts < expert
    place = tl.sum(tl.where(before, counts, 0), 0)
    block = tl.sum(tl.where(before, blocks, 0), 0)
    own = tl.sum(tl.where(all_experts == expert, counts, 0), 0)
    tl.store(ends_ptr + expert, place + own)
    if expert == 0:
        tl.store(num_blocks_ptr, tl.sum(blocks, 0))
    for start in range(0, own, BLOCK_M):
        tl.store(block_expert_ptr + block + start // BLOCK_M, expert)
        tl.store(block_start_ptr + block + start // BLOCK_M, place + start)
    offsets = tl.arange(0, SCAN)
    if own > 0:
        for start in range(0, n, SCAN):
            inside = start + offsets < n
            hit = tl.load(experts_ptr + start + offsets, mask=inside, other=-1) == expert
            rank = tl.cumsum(hit.to(tl.int32), 0)
            tl.store(pairs_ptr + place + rank - 1, start + offsets, mask=hit)
            place += tl.sum(hit.to(tl.int32), 0)


def align_pairs(experts: torch.Tensor, num_experts: int, block_m: int) -> AlignedPairs:
    """experts: int32 [T, top_k]."""
    n, device = experts.numel(), experts.device

    def empty(size: int) -> torch.Tensor:
        return torch.empty(size, dtype=torch.int32, device=device)

    # Each expert that is used fills all of its blocks but one.
    bound = n // block_m + min(n, num_experts)
    aligned = AlignedPairs(empty(n), empty(num_experts), empty(bound), empty(bound), empty(1))
    counts = empty(num_experts)
    count_pairs_kernel[(num_experts,)](experts, counts, n, SCAN=SCAN)
    place_pairs_kernel[(num_experts,)](
        experts, counts, aligned.pairs, aligned.ends, aligned.block_expert, aligned.block_start, aligned.num_blocks, n,
        EXPERTS=num_experts, BLOCK_E=next_power_of_2(num_experts), BLOCK_M=block_m, SCAN=SCAN,
    )  # fmt: skip
    return aligned
