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
from lightllm.ops.cpu.kernels.lowlevel import FAST, address_of, kernel, scratch, take_next, uint16s
from lightllm.ops.cpu.kernels.pairs import LANES, make_product, round_vector
from lightllm.ops.cpu_kind import CpuKind, chosen

_CHUNK = 48
"""Rows whose sums are held at a time, in the first cache."""
_FEW, _SOME = 8, 18
"""Up to so many rows four lines are asked for with each pair, two, and with more rows one: a panel's worth until all rows are done."""
_FEW_PAIRS, _PAIRS = 64, 512
"""Pairs of inputs that are multiplied with all rows of a chunk before the next ones, 16 or 128 KiB of a panel: of up to _SOME
rows, of more. The next ones come from memory meanwhile: without that, waiting for memory and computing take turns."""

_sums_of_a_chunk = scratch(_CHUNK * WIDTH)
_line = scratch(WIDTH)


@kernel
def _finish(sums, rows, out, stride, width):
    """The first `width` of each row's sums, rounded. out: address of the first row's."""
    for row in range(rows):
        total, to = sums + 4 * WIDTH * row, uint16s(out + stride * row)
        for i in range(0, WIDTH, LANES):
            round_vector(total + 4 * i, total + 2 * i)
        rounded = uint16s(total)
        for i in range(width):
            to[i] = rounded[i]


def _make_fetching(rounded: bool) -> Any:
    """A product for any number of rows: the fewer there are, the more lines are asked for with each pair."""
    one, two, four = (make_product(WIDTH // LANES, True, lines, rounded) for lines in (1, 2, 4))

    @kernel
    def fetching(rows, x, x_stride, weights, pairs, to, to_stride, base, base_stride, soon):
        if rows > _SOME:
            one(rows, x, x_stride, weights, 4 * WIDTH, pairs, to, to_stride, base, base_stride, soon)
        elif rows > _FEW:
            two(rows, x, x_stride, weights, 4 * WIDTH, pairs, to, to_stride, base, base_stride, soon)
        else:
            four(rows, x, x_stride, weights, 4 * WIDTH, pairs, to, to_stride, base, base_stride, soon)

    return fetching


def make() -> Any:
    add, add_last, line = _make_fetching(False), _make_fetching(True), 4 * WIDTH

    @cfunc(types.void(types.CPointer(types.int64)), fastmath=FAST, error_model="numpy")
    def panel_linear(call):
        """What each thread runs: panels, with all rows or a part of them, until there are none left."""
        counter, held, nothing = address_of(call) + 8 * at.NEXT, address_of(_sums_of_a_chunk()), _line()
        zeros = address_of(nothing)
        for i in range(WIDTH):
            nothing[i] = np.float32(0)
        rows, x_stride, pairs, outputs = call[at.ROWS], call[at.X_STRIDE], call[at.PAIRS], call[at.OUTPUTS]
        panels, size = -(-outputs // WIDTH), -(-rows // call[at.PARTS])
        while True:
            task = take_next(counter)
            if task >= panels * call[at.PARTS]:
                return
            panel = task % panels
            begin_row = task // panels * size
            end_row = min(begin_row + size, rows)
            weights, width = call[at.PANELS] + panel * pairs * line, min(WIDTH, outputs - panel * WIDTH)
            for first in range(begin_row, end_row, _CHUNK):
                count, out = (
                    min(_CHUNK, end_row - first),
                    call[at.OUT] + 2 * (first * outputs + panel * WIDTH),
                )
                base, base_stride = zeros, 0
                if call[at.BIAS]:
                    base = call[at.BIAS] + line * panel
                most = _FEW_PAIRS if count <= _SOME else _PAIRS
                for start in range(0, pairs, most):
                    x, some = call[at.X] + first * x_stride + 4 * start, min(most, pairs - start)
                    now, last = weights + line * start, start + some == pairs
                    soon = now + line * some
                    if last:
                        soon = call[at.PANELS] + (panel + call[at.THREADS]) % panels * pairs * line
                    if last and width == WIDTH:
                        add_last(count, x, x_stride, now, some, out, 2 * outputs, base, base_stride, soon)
                    else:
                        add(count, x, x_stride, now, some, held, line, base, base_stride, soon)
                    base, base_stride = held, line
                if width < WIDTH:
                    _finish(held, count, out, 2 * outputs, width)

    return panel_linear


def kernels() -> dict[str, Callable[[], Any]]:
    # A processor with a matrix unit (AMX) multiplies many rows faster with it, as oneDNN does.
    return {"panel_linear_bfloat16": make} if chosen() == CpuKind.AVX512_BF16 else {}
