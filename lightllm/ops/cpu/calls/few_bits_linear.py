"""What a linear layer of weights in few bits is told: int64 numbers at these places."""

from __future__ import annotations

(
    NEXT,  # a counter of all threads, 0 at first
    ROWS,
    PARTS,  # that rows are shared out in, where there are few panels
    X,  # bfloat16 [rows, INPUTS]
    X_STRIDE,  # bytes from row to row
    INPUTS,
    HIGH,  # int8 [rows, BLOCKS * BLOCK], inputs in fixed point: 256 * high + low
    LOW,  # int8, the same shape
    FACTORS,  # float32 [rows, BLOCKS], what a block's fixed point counts in
    TOTALS,  # int32 [rows, BLOCKS], the sum of a block's fixed point
    OUT,  # bfloat16 [rows, OUTPUTS], contiguous
    CODES,  # uint8 [panels, BLOCKS * bytes of a block], see the kernel
    BLOCKS,
    BLOCK,  # inputs of a block
    OUTPUTS,
    SCALES,  # float32 [panels, GROUPS, WIDTH]
    ZEROS,  # uint8, the same shape; or WIDTH of them for all
    ZERO_STRIDE,  # bytes from group to group; 0: for all the same
    GROUPS,
    BLOCKS_OF_GROUP,
    BIAS,  # float32 [panels * WIDTH], or 0
    THREADS,  # that take panels in turn
) = range(22)

LENGTH = 22
WIDTH = 64
"""Outputs of a panel."""
