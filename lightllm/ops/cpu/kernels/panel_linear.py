"""A linear layer of bfloat16 weights for any number of rows, with the instruction that multiplies pairs (AVX512-BF16).

The weight lies in panels of WIDTH outputs, [inputs / 2, WIDTH, 2]: the pairs of one input of all outputs side by side. A
panel is read once from memory, one line after the other, and kept in the second cache while all rows of x are multiplied with
it.

Each output is one chain of sums over the inputs in their order, whatever other rows there are.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import cfunc, types

from lightllm.ops.cpu.calls import panel_linear as at
from lightllm.ops.cpu.calls.panel_linear import WIDTH
from lightllm.ops.cpu.kernels.lowlevel import FAST, address_of, floats, kernel, scratch, take_next, uint16s
from lightllm.ops.cpu.kernels.pairs import LANES, make_product, round_vector
from lightllm.ops.cpu_kind import CpuKind, chosen

_CHUNK = 96
"""Rows whose sums are held at a time, in the first cache."""
_PAIRS = 1024
"""Pairs of inputs of a panel that are multiplied with all rows of a chunk before the next ones: 256 KiB."""

_sums_of_a_chunk = scratch(_CHUNK * WIDTH)


@kernel
def _begin(sums, rows, bias, panel):
    for row in range(rows):
        for i in range(WIDTH):
            sums[row * WIDTH + i] = floats(bias)[panel * WIDTH + i] if bias else np.float32(0)


@kernel
def _round(sums, out):
    for i in range(0, WIDTH, LANES):
        round_vector(sums + 4 * i, out + 2 * i)


@kernel
def _finish(sums, rows, out, outputs, panel):
    """out: address of the first row's first output."""
    width = min(WIDTH, outputs - panel * WIDTH)
    for row in range(rows):
        total, place = sums + 4 * WIDTH * row, out + 2 * (row * outputs + panel * WIDTH)
        if width == WIDTH:
            _round(total, place)
        else:
            _round(total, total)
            rounded, to = uint16s(total), uint16s(place)
            for i in range(width):
                to[i] = rounded[i]


def make() -> Any:
    add_product, line = make_product(WIDTH // LANES, add=True), 4 * WIDTH

    @cfunc(types.void(types.CPointer(types.int64)), fastmath=FAST, error_model="numpy")
    def panel_linear(call):
        """What each thread runs: panels, with all rows or a part of them, until there are none left."""
        counter, sums = address_of(call) + 8 * at.NEXT, _sums_of_a_chunk()
        held = address_of(sums)
        rows, x_stride, pairs, outputs = call[at.ROWS], call[at.X_STRIDE], call[at.PAIRS], call[at.OUTPUTS]
        panels, size = -(-outputs // WIDTH), -(-rows // call[at.PARTS])
        while True:
            task = take_next(counter)
            if task >= panels * call[at.PARTS]:
                return
            panel = task % panels
            begin_row = task // panels * size
            end_row = min(begin_row + size, rows)
            weights = call[at.PANELS] + panel * pairs * line
            for first in range(begin_row, end_row, _CHUNK):
                count = min(_CHUNK, end_row - first)
                _begin(sums, count, call[at.BIAS], panel)
                for start in range(0, pairs, _PAIRS):
                    x, some = call[at.X] + first * x_stride + 4 * start, min(_PAIRS, pairs - start)
                    add_product(count, x, x_stride, weights + line * start, line, some, held, line)
                _finish(held, count, call[at.OUT] + 2 * first * outputs, outputs, panel)

    return panel_linear


def kernels() -> dict[str, Callable[[], Any]]:
    # A processor with a matrix unit (AMX) multiplies many rows faster with it, as oneDNN does.
    return {"panel_linear_bfloat16": make} if chosen() == CpuKind.AVX512_BF16 else {}
