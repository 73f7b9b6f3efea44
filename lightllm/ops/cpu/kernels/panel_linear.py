"""A linear layer of bfloat16 weights for any number of rows, with the instruction that multiplies pairs (AVX512-BF16).

The weight lies in panels of WIDTH outputs, [inputs / 2, WIDTH, 2]: the pairs of one input of all outputs side by side. A
panel is read once from memory, one line after the other, and kept in the second cache while all rows of x are multiplied with
it; meanwhile the pairs behind them are fetched, at the end of a panel those of the panel that this thread will probably take
next.

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
_FEW, _SOME = 8, 18
"""Up to so many rows four lines are asked for with each pair, two, and with more rows one: a panel's worth until all rows are done."""
_FEW_PAIRS, _PAIRS = 64, 256
"""Pairs of inputs that are multiplied with all rows of a chunk before the next ones, 16 or 64 KiB of a panel: of up to _SOME
rows, of more. The next ones come from memory meanwhile: without that, waiting for memory and computing take turns."""

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
    vectors, line = WIDTH // LANES, 4 * WIDTH
    fetching1, fetching2, fetching4 = (make_product(vectors, add=True, fetched=lines) for lines in (1, 2, 4))

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
                most = _FEW_PAIRS if count <= _SOME else _PAIRS
                for start in range(0, pairs, most):
                    x, some = call[at.X] + first * x_stride + 4 * start, min(most, pairs - start)
                    now = weights + line * start
                    soon = now + line * some
                    if start + some == pairs:
                        soon = call[at.PANELS] + (panel + call[at.THREADS]) % panels * pairs * line
                    if count > _SOME:
                        fetching1(count, x, x_stride, now, line, some, held, line, soon)
                    elif count > _FEW:
                        fetching2(count, x, x_stride, now, line, some, held, line, soon)
                    else:
                        fetching4(count, x, x_stride, now, line, some, held, line, soon)
                _finish(held, count, call[at.OUT] + 2 * first * outputs, outputs, panel)

    return panel_linear


def kernels() -> dict[str, Callable[[], Any]]:
    # A processor with a matrix unit (AMX) multiplies many rows faster with it, as oneDNN does.
    return {"panel_linear_bfloat16": make} if chosen() == CpuKind.AVX512_BF16 else {}
