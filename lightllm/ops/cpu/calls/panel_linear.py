"""What a linear layer in panels is told: int64 numbers at these places."""

from __future__ import annotations

(
    NEXT,  # a counter of all threads, 0 at first
    ROWS,
    PARTS,  # that rows are shared out in, where there are few panels
    X,  # bfloat16 [rows, 2 * PAIRS]
    X_STRIDE,  # bytes from row to row
    OUT,  # bfloat16 [rows, OUTPUTS], contiguous
    PANELS,  # bfloat16 [ceil(OUTPUTS / WIDTH), PAIRS, WIDTH, 2], zeros behind the last output
    PAIRS,
    OUTPUTS,
    BIAS,  # float32 [ceil(OUTPUTS / WIDTH) * WIDTH], or 0
    THREADS,  # that take panels in turn
) = range(11)

LENGTH = 11
WIDTH = 64
"""Outputs of a panel."""
