"""A linear layer of weights in few bits for any number of rows, that multiplies numbers and not codes: of float32 inputs on every
processor, and for E4M3 of bfloat16 inputs with the instruction that multiplies pairs (AVX512-BF16).

Codes lie in panels of WIDTH outputs, [steps, WIDTH, 1 to 4 bytes] (see `widening.py`). A few rows are multiplied with codes that
are widened in registers; of more rows the numbers of a block of inputs are written to the first cache once, and read from there.

Sums of a block are added up over the blocks in their order, times their scales, whatever other rows there are.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import cfunc, types

from lightllm.ops.cpu.calls import widened_linear as at
from lightllm.ops.cpu.kernels.lowlevel import FAST, address_of, floats, kernel, scratch, take_next, uint16s
from lightllm.ops.cpu.kernels.numbers import BFLOAT16
from lightllm.ops.cpu.kernels.widened_tiles import make_tile, make_widen
from lightllm.ops.cpu.kernels.widening import LANES, OF_FLOATS, OF_PAIRS, WIDE, WIDTH, Widening
from lightllm.ops.cpu_kind import CpuKind, chosen

_CHUNK = 96
"""Rows whose sums are held at a time."""
_FEW, _MOST = 4 if LANES == 16 else 2, 6
"""Rows whose sums are held in registers: beside what widens codes, and where there is nothing to widen."""
_INT8, _INT4, _E2M1, _E4M3 = range(len(at.ELEMENTS))

_store = BFLOAT16.store
_sums_of_a_chunk = scratch(_CHUNK * WIDTH)
_block = scratch(at.BLOCK_AT_MOST * WIDTH)


@kernel
def _begin(sums, rows, bias, panel):
    for row in range(rows):
        for i in range(WIDTH):
            sums[row * WIDTH + i] = floats(bias)[panel * WIDTH + i] if bias else np.float32(0)


def _make_finish(pairs: bool) -> Any:
    @kernel
    def finish(sums, rows, out, outputs, panel):
        """out: address of the first row's first output."""
        width = min(WIDTH, outputs - panel * WIDTH)
        for row in range(rows):
            first = row * outputs + panel * WIDTH
            if pairs:
                rounded = uint16s(out + 2 * first)
                for i in range(width):
                    _store(rounded, i, sums[row * WIDTH + i])
            else:
                numbers = floats(out + 4 * first)
                for i in range(width):
                    numbers[i] = sums[row * WIDTH + i]

    return finish


def _make_rows(widening: Widening, pairs: bool, most: int) -> Any:
    """Of 1 to `most` rows."""
    own = make_tile(most, widening, pairs)

    @kernel
    def last(rows, codes, steps, x, x_stride, totals, of_row, scales, zeros, sums, soon):
        own(codes, steps, x, x_stride, totals, of_row, scales, zeros, sums, soon)

    if most == 1:
        return last
    fewer = _make_rows(widening, pairs, most - 1)

    @kernel
    def tile(rows, codes, steps, x, x_stride, totals, of_row, scales, zeros, sums, soon):
        if rows == most:
            own(codes, steps, x, x_stride, totals, of_row, scales, zeros, sums, soon)
        else:
            fewer(rows, codes, steps, x, x_stride, totals, of_row, scales, zeros, sums, soon)

    return tile


def _make_block(widening: Widening, wide: Any, pairs: bool) -> Any:
    """Of any number of rows."""
    of_codes, widen, units = _make_rows(widening, pairs, _FEW), make_widen(widening), widening.units

    @kernel
    def block(rows, codes, steps, held, x, x_stride, totals, of_row, scales, zeros, sums, soon):
        done, few = 0, rows <= 2 * _FEW  # so many are done sooner than what is widened is written and read
        if not few:
            widen(codes, steps, held)
        parts = -(-rows // _FEW) if few else -(-rows // _MOST)
        for part in range(parts):
            taken = (rows - done) // (parts - part)
            own, of, to = x + done * x_stride, totals + done * of_row, sums + 4 * WIDTH * done
            ahead = held if part else soon
            if few:
                of_codes(taken, codes, steps, own, x_stride, of, of_row, scales, zeros, to, ahead)
            else:
                wide(taken, held, steps * units, own, x_stride, of, of_row, scales, zeros, to, ahead)
            done += taken

    return block


def _make_blocks(pairs: bool) -> Any:
    """Of each element, those that there are."""
    wide = _make_rows(WIDE, pairs, _MOST)
    if pairs:
        e4m3 = _make_block(OF_PAIRS["e4m3"], wide, pairs)

        @kernel
        def block(element, rows, codes, steps, held, x, x_stride, totals, of_row, scales, zeros, sums, soon):
            e4m3(rows, codes, steps, held, x, x_stride, totals, of_row, scales, zeros, sums, soon)

        return block
    int8, int4, e2m1, e4m3 = (_make_block(OF_FLOATS[element], wide, pairs) for element in at.ELEMENTS)

    @kernel
    def block(element, rows, codes, steps, held, x, x_stride, totals, of_row, scales, zeros, sums, soon):
        if element == _INT8:
            int8(rows, codes, steps, held, x, x_stride, totals, of_row, scales, zeros, sums, soon)
        elif element == _INT4:
            int4(rows, codes, steps, held, x, x_stride, totals, of_row, scales, zeros, sums, soon)
        elif element == _E2M1:
            e2m1(rows, codes, steps, held, x, x_stride, totals, of_row, scales, zeros, sums, soon)
        else:
            e4m3(rows, codes, steps, held, x, x_stride, totals, of_row, scales, zeros, sums, soon)

    return block


def _make(pairs: bool) -> Callable[[], Any]:
    def make() -> Any:
        block_of, finish, of_input = _make_blocks(pairs), _make_finish(pairs), 2 if pairs else 4

        @cfunc(types.void(types.CPointer(types.int64)), fastmath=FAST, error_model="numpy")
        def widened_linear(call):
            """What each thread runs: panels, with all rows or a part of them, until there are none left."""
            counter, sums, held = address_of(call) + 8 * at.NEXT, _sums_of_a_chunk(), address_of(_block())
            to = address_of(sums)
            rows, blocks, block, outputs = call[at.ROWS], call[at.BLOCKS], call[at.BLOCK], call[at.OUTPUTS]
            panels, size = -(-outputs // WIDTH), -(-rows // call[at.PARTS])
            element, inputs, x_stride = call[at.ELEMENT], call[at.INPUTS], call[at.X_STRIDE]
            panel_bytes = call[at.PANEL_BYTES]
            while True:
                task = take_next(counter)
                if task >= panels * call[at.PARTS]:
                    return
                panel = task % panels
                begin_row = task // panels * size
                end_row = min(begin_row + size, rows)
                codes = call[at.CODES] + panel * panel_bytes
                next_codes = call[at.CODES] + (panel + call[at.THREADS]) % panels * panel_bytes
                for first in range(begin_row, end_row, _CHUNK):
                    count = min(_CHUNK, end_row - first)
                    _begin(sums, count, call[at.BIAS], panel)
                    for b in range(blocks):
                        group = panel * call[at.GROUPS] + b // call[at.BLOCKS_OF_GROUP]
                        scales, zeros = call[at.SCALES] + 4 * WIDTH * group, call[at.ZEROS]
                        if zeros:
                            zeros += call[at.ZERO_STRIDE] * group
                        now = codes + b * call[at.BLOCK_BYTES]
                        soon = now + call[at.BLOCK_BYTES] if b + 1 < blocks else next_codes
                        steps = min(block, inputs - b * block) // call[at.INPUTS_A_STEP]
                        block_of(
                            element, count, now, steps, held, call[at.X] + first * x_stride + b * block * of_input, x_stride,
                            call[at.TOTALS] + 4 * (first * blocks + b), 4 * blocks, scales, zeros, to, soon,
                        )  # fmt: skip
                    finish(sums, count, call[at.OUT] + first * outputs * of_input, outputs, panel)

        return widened_linear

    return make


def _make_totals() -> Any:
    @cfunc(types.void(types.CPointer(types.int64)), fastmath=FAST, error_model="numpy")
    def widened_totals(call):
        """What each thread runs: sums of the blocks of a row, until there are no rows left."""
        counter, blocks, block = address_of(call) + 8 * at.NEXT, call[at.BLOCKS], call[at.BLOCK]
        while True:
            row = take_next(counter)
            if row >= call[at.ROWS]:
                return
            x, totals = (
                floats(call[at.X] + row * call[at.X_STRIDE]),
                floats(call[at.TOTALS] + 4 * row * blocks),
            )
            for b in range(blocks):
                total = np.float32(0)
                for i in range(b * block, min((b + 1) * block, call[at.INPUTS])):
                    total += x[i]
                totals[b] = total

    return widened_totals


def kernels() -> dict[str, Callable[[], Any]]:
    made = {"widened_linear_float32": _make(False), "widened_totals": _make_totals}
    return made if chosen() < CpuKind.AVX512_BF16 else made | {"widened_linear_bfloat16": _make(True)}
