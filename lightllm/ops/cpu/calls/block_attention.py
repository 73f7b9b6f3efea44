"""What the attention kernel of blocks is told: int64 numbers at these places. Addresses are those of contiguous memory."""

from __future__ import annotations

(
    Q,  # bfloat16 [T, heads, head_dim], Q_STRIDE numbers from token to token
    KV,  # numbers of the slots, or codes
    SLOTS,  # int32 [rows, ROW_STRIDE]: slot of each position of each row
    OUT,  # bfloat16 [T, heads, head_dim]
    TASKS,  # int64 [NUM_TASKS, TASK_LENGTH]
    COUNTERS,  # int64 [2 + of members], zeros: tasks begun, threads begun, pieces done
    SCRATCH,  # SCRATCH_BYTES for each thread, 64-byte aligned
    STATES,  # float32: what tasks with members summed up
    SCALE,  # float32 [2]: of scores, and the soft cap
    ALIBI,  # float32 [heads], or 0
    SINKS,  # float32 [heads], or 0
    TILES,  # the configuration of the matrix unit: 64 bytes
    NUM_TASKS,
    KV_HEADS,
    GROUP,  # query heads of a KV head
    HEAD_DIM,  # even
    WINDOW,  # 0: none
    Q_STRIDE,
    SLOT_STRIDE,  # bytes from slot to slot
    ROW_STRIDE,
    SCRATCH_BYTES,
    MOST_HEADS,  # KV heads of a task
    MOST_ROWS,  # of a KV head: tokens times GROUP, with a matrix unit a multiple of TILE
    STATE_SIZE,  # `state_size` of both
    ELEMENT,  # of KV: BFLOAT16, or codes that become such numbers
    HEAD_BYTES,  # of a head of a slot
    SCALES,  # bfloat16, of slots [2 * KV_HEADS, GROUPS]; of codes
    SCALE_STRIDE,  # numbers from slot to slot
    GROUPS,  # of a head
) = range(29)
LENGTH = 29

BFLOAT16, E4M3, INT4 = range(3)

(
    TABLE_ROW,  # of SLOTS
    TOKEN,  # of the batch: the task's first
    POSITION,  # its position
    TOKENS,
    KV_HEAD,  # the first
    HEADS,  # KV heads from there on
    FIRST_PIECE,  # pieces to go over: of PIECE positions, numbered from position 0
    END_PIECE,
    MEMBERS,  # int64 [TOKENS, MEMBER_LENGTH], or 0: tokens that follow each other, whose result is this task's alone
    STATE,  # with members: of STATES, where the sums of this piece go, as `state_size` says
) = range(10)
TASK_LENGTH = 10

(
    MEMBER_TOKEN,  # of the batch; by position
    MEMBER_POSITION,
    COUNTER,  # of COUNTERS: pieces of this token that are done
    LINKS,  # int64 [NUM_LINKS, LINK_LENGTH]: its pieces in order
    NUM_LINKS,
) = range(5)
MEMBER_LENGTH = 5
"""One of several tokens, of any contexts, that see the same piece: of different requests with the same prefix, say."""

(
    LINK_STATE,  # of STATES
    LINK_ROWS,  # of a KV head there
    LINK_FIRST,  # the token's first of them
) = range(3)
LINK_LENGTH = 3

ADDRESSES = 48
"""Bytes of the addresses of a key of a block."""
BLOCK = 64
"""Keys at a time. They begin at multiples of it, so that a token's sums do not depend on how its prompt was cut."""
PIECE = 256
"""Keys that are summed up by themselves: several threads share a long context of one token."""
TILE = 32
"""Rows whose scores are held at a time; numbers of a head are padded to a multiple of it."""


def padded(head_dim: int) -> int:
    return -(-head_dim // TILE) * TILE


def state_size(heads: int, rows: int, head_dim: int) -> int:
    """float32: a maximum and a sum of each row, then weighted values [heads, rows, padded(head_dim)]"""
    return heads * rows * (2 + padded(head_dim))


def scratch_bytes(kv_heads: int, heads: int, rows: int, head_dim: int) -> int:
    """As `kernels/block_attention.py` lays it out. kv_heads: of a slot; heads: of a task."""
    wide, slot = padded(head_dim), -(-4 * kv_heads * head_dim // 64) * 64
    own = 2 * heads * rows * wide + 8 * state_size(heads, rows, head_dim)
    return 64 + ADDRESSES * BLOCK + slot + 6 * BLOCK * wide + 6 * TILE * BLOCK + own
