"""What the attention kernel of codes of 8 bits is told: what `block_attention` is."""

from __future__ import annotations

from lightllm.ops.cpu.calls import block_attention as blocks
from lightllm.ops.cpu.calls.block_attention import BLOCK, TILE

LENGTH = blocks.LENGTH
WIDTH = 64
"""Codes of a head are padded to a multiple of it."""
OWN = 12
"""Bytes of what is kept of a row of queries: two int32 and a float32, see `quads.scores_of`."""


def padded(head_dim: int) -> int:
    return -(-head_dim // WIDTH) * WIDTH


def state_size(heads: int, rows: int, head_dim: int) -> int:
    return blocks.state_size(heads, rows, padded(head_dim))


def scratch_bytes(kv_heads: int, heads: int, rows: int, head_dim: int) -> int:
    """As `kernels/coded_attention.py` lays it out. heads: KV heads of a task; rows: of each."""
    wide = padded(head_dim)
    own = (2 * wide + OWN) * heads * rows + 8 * state_size(heads, rows, head_dim)
    return 64 + (5 * 8 + 4 * 4) * BLOCK + 3 * BLOCK * wide + 10 * TILE * BLOCK + 4 * TILE + own
