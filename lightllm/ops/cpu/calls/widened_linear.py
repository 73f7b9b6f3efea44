"""What a linear layer of widened weights is told: int64 numbers at these places."""

from __future__ import annotations

from lightllm.ops.cpu_kind import CpuKind, chosen

(
    NEXT,  # a counter of all threads, 0 at first
    ROWS,
    PARTS,  # that rows are shared out in, where there are few panels
    X,  # [rows, INPUTS] of the activations' dtype
    X_STRIDE,  # bytes from row to row
    INPUTS,  # a multiple of INPUTS_A_STEP
    TOTALS,  # float32 [rows, BLOCKS], the sum of a block's inputs; read where there are ZEROS
    OUT,  # [rows, OUTPUTS] of the activations' dtype, contiguous
    CODES,  # uint8 [panels, PANEL_BYTES], see the kernel
    PANEL_BYTES,
    BLOCK_BYTES,
    ELEMENT,  # a place in ELEMENTS
    BLOCKS,
    BLOCK,  # inputs of a block but the last, a multiple of INPUTS_A_STEP
    INPUTS_A_STEP,
    OUTPUTS,
    SCALES,  # float32 [panels, GROUPS, width]
    ZEROS,  # int8, the same shape; or `width` of them for all; or 0: there are none
    ZERO_STRIDE,  # bytes from group to group; 0: for all the same
    GROUPS,
    BLOCKS_OF_GROUP,
    BIAS,  # float32 [panels * width], or 0
    THREADS,  # that take panels in turn
) = range(23)

LENGTH = 23
BLOCK_AT_MOST = 128
"""Inputs whose numbers are held at a time."""
ELEMENTS = ("int8", "int4", "e2m1", "e4m3")
INPUTS_OF_STEP = {"int8": 1, "int4": 8, "e2m1": 8, "e4m3": 2}
"""That are widened at once: the codes of an output for them stand side by side, in 1, 2 or 4 bytes."""


def lanes() -> int:
    """float32 of a vector."""
    return 16 if chosen() >= CpuKind.AVX512 else 8


def width() -> int:
    """Outputs of a panel: four vectors."""
    return 4 * lanes()
