"""What a prefill attention kernel is told: int64 numbers at these places. Addresses are those of contiguous memory."""

from __future__ import annotations

(
    Q,  # bfloat16 [T, heads, head_dim], Q_STRIDE numbers from token to token
    KV,  # bfloat16 numbers of the slots
    SLOTS,  # int32 [rows, ROW_STRIDE]: slot of each position of each row
    OUT,  # bfloat16 [T, heads, head_dim]
    TASKS,  # int64 [NUM_TASKS, 5]: row, first token of the batch, its position, tokens, KV head
    COUNTERS,  # int64 [2], zeros: tasks begun, threads begun
    SCRATCH,  # SCRATCH_BYTES for each thread, 64-byte aligned
    SCALE,  # float32 [2]: of scores, and the soft cap
    ALIBI,  # float32 [heads], or 0
    SINKS,  # float32 [heads], or 0
    TILES,  # the tile configuration: 64 bytes
    NUM_TASKS,
    KV_HEADS,
    GROUP,  # query heads of a KV head
    HEAD_DIM,  # even
    WINDOW,  # 0: none
    Q_STRIDE,
    SLOT_STRIDE,  # numbers from slot to slot, even
    ROW_STRIDE,
    SCRATCH_BYTES,
    MOST_ROWS,  # of a task: its tokens times GROUP, made a multiple of 32
) = range(21)

LENGTH = 21
BLOCK = 64
"""Keys at a time. They begin at multiples of it, so that a token's sums do not depend on how its prompt was cut."""
TILE = 32
"""Rows, and keys or numbers of a head, that are multiplied at a time."""


def padded(head_dim: int) -> int:
    return -(-head_dim // TILE) * TILE


def scratch_bytes(rows: int, head_dim: int) -> int:
    """As `kernels/prefill_attention.py` lays it out."""
    wide = padded(head_dim)
    return 64 + rows * (2 * wide + 4 * wide + 8) + 4 * BLOCK * wide + 6 * TILE * BLOCK
