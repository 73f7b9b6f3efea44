"""Tokens that a bitmask does not allow, in place: only they are written, and no logit is read."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from lightllm.ops.triton.launch import cdiv

BLOCK = 1024


@triton.jit
def token_bitmask_kernel(
    logits_ptr, entries_ptr, bitmask_ptr, stride, bitmask_stride, vocab, words, BLOCK: tl.constexpr
):
    """logits[entries[i], t] = -inf where t // 32 >= words or bit t % 32 of bitmask[i, t // 32] is 0. Grid
    (c, ceil(V / BLOCK)). An entry times the stride needs 64 bits."""
    row = tl.program_id(0).to(tl.int64)
    token = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    entry = tl.load(entries_ptr + row).to(tl.int64)
    word = tl.load(bitmask_ptr + row * bitmask_stride + token // 32, mask=token // 32 < words, other=0)
    banned = ((word >> (token % 32)) & 1) == 0
    nothing = tl.full((BLOCK,), float("-inf"), tl.float32)
    tl.store(logits_ptr + entry * stride + token, nothing, mask=banned & (token < vocab))


def keep_allowed_(logits: torch.Tensor, entries: torch.Tensor, bitmask: torch.Tensor) -> None:
    rows, words = bitmask.shape
    if rows:
        vocab = logits.shape[1]
        assert logits.stride(1) == entries.stride(0) == 1 and bitmask.is_contiguous()
        token_bitmask_kernel[(rows, cdiv(vocab, BLOCK))](
            logits, entries, bitmask, logits.stride(0), words, vocab, words, BLOCK=BLOCK, num_warps=4
        )
