"""Reading one row of logits, for the sampling kernels."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def load_block(row_ptr, start, vocab, scale, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """(ids, scaled logits) [ROWS, COLUMNS] from `start` on; -inf past the end.

    Two dimensions, so that sums over the first stay within a thread and the loads of all rows are in flight at once.
    """
    index = start + tl.arange(0, ROWS)[:, None] * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    return index, tl.load(row_ptr + index, mask=index < vocab, other=float("-inf")) * scale


@triton.jit
def row_mass(row_ptr, vocab, scale, peak, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Sum of exp(logit - peak), float64."""
    mass = tl.zeros((COLUMNS,), tl.float32)
    for start in range(0, vocab, ROWS * COLUMNS):
        _, x = load_block(row_ptr, start, vocab, scale, ROWS, COLUMNS)
        mass += tl.sum(tl.exp(x - peak), 0)
    return tl.sum(mass.to(tl.float64), 0)


@triton.jit
def order_key(x):
    """int32 that is ordered as the float32 is; -0.0 equals 0.0."""
    bits = tl.where(x == 0.0, 0.0, x).to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def from_order_key(key):
    """The float32 of a key."""
    return (key ^ ((key >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)
