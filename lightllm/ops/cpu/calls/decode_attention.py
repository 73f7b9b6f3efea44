"""What a decode attention kernel is told: int64 numbers at these places. Addresses are those of contiguous memory."""

from __future__ import annotations

(
    Q,  # [n, kv_heads, group, head_dim], like KV and OUT of the kernel's dtype
    KV,  # numbers of the slots
    SLOTS,  # int32 [rows, ROW_STRIDE]: slot of each position of each row
    ROWS,  # int64 [n]
    KV_LENS,  # int32 [n]
    OUT,  # [n, kv_heads, group, head_dim]
    TASKS,  # int32 [NUM_TASKS, 4]: entry, first token, number of the piece, pieces of the entry
    COUNTERS,  # int64 [2 + n], zeros: tasks begun, threads begun, pieces done
    SCRATCH,  # float32 [threads, heads, BLOCK + head_dim]
    STATES,  # float32 [NUM_TASKS, heads * (2 + head_dim)]
    SCALE,  # float32 [2]: of scores, and the soft cap
    ALIBI,  # float32 [heads], or 0
    SINKS,  # float32 [heads], or 0
    NUM_TASKS,
    KV_HEADS,
    GROUP,  # query heads of a KV head
    HEAD_DIM,
    SLOT_STRIDE,  # numbers from slot to slot
    ROW_STRIDE,
) = range(19)

LENGTH = 19
BLOCK = 64
"""Tokens whose scores are held at a time."""
SPLIT = 128
"""Tokens of a piece: several threads share a long context."""
