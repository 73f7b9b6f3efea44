"""A linear layer of weights in 4 or 8 bits for any number of rows, on processors that multiply bytes (AVX512-VNNI).

Codes are unsigned and lie in panels of WIDTH outputs: [inputs / 4, WIDTH, 4], in 4 bits [inputs / 8, WIDTH, 4], whose low
bits are the first four of eight inputs and whose high bits the next four.

Inputs are put in fixed point first, 16 bits, of which each block of inputs (up to 128) has its own: 256 * high + low. So the
sums of a block are exact integers; they are added up over the blocks in float32, in their order, whatever other rows there are.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import cfunc, types

from lightllm.ops.cpu.calls import few_bits_linear as at
from lightllm.ops.cpu.calls.few_bits_linear import WIDTH
from lightllm.ops.cpu.kernels.byte_products import STEP, make_block
from lightllm.ops.cpu.kernels.lowlevel import (
    FAST,
    address_of,
    float_of,
    floats,
    int8s,
    int32s,
    kernel,
    scratch,
    take_next,
    uint16s,
)
from lightllm.ops.cpu.kernels.numbers import BFLOAT16
from lightllm.ops.cpu.kernels.pairs import LANES, round_vector
from lightllm.ops.cpu_kind import CpuKind, chosen

_CHUNK = 96
"""Rows whose sums are held at a time, in the first cache."""
_MOST = np.float32(32512.0)
"""The largest fixed point: 127 * 256."""

_load = BFLOAT16.load
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


@kernel
def _float_of_bfloat16(bits):
    return float_of(np.int32(bits) << np.int32(16))


def make_inputs() -> Any:
    @cfunc(types.void(types.CPointer(types.int64)), fastmath=FAST, error_model="numpy")
    def few_bits_inputs(call):
        """What each thread runs: rows in fixed point, until there are none left."""
        counter = address_of(call) + 8 * at.NEXT
        inputs, blocks, block = call[at.INPUTS], call[at.BLOCKS], call[at.BLOCK]
        while True:
            row = take_next(counter)
            if row >= call[at.ROWS]:
                return
            x = uint16s(call[at.X] + row * call[at.X_STRIDE])
            high = int8s(call[at.HIGH] + row * blocks * block)
            low = int8s(call[at.LOW] + row * blocks * block)
            factors = floats(call[at.FACTORS] + 4 * row * blocks)
            totals = int32s(call[at.TOTALS] + 4 * row * blocks)
            for b in range(blocks):
                start, stop = b * block, min((b + 1) * block, inputs)
                most = np.uint16(0)
                for i in range(start, stop):
                    most = max(most, x[i] & np.uint16(0x7FFF))
                largest = _float_of_bfloat16(most)
                finite = most < np.uint16(0x7F80)
                factors[b] = largest * (np.float32(1) / _MOST)
                # Where one is no number the factor is none, and so is every output of the row.
                ratio = _MOST / largest if finite and largest > np.float32(1e-30) else np.float32(0)
                total = np.int32(0)
                for i in range(start, stop):
                    value = _load(x, i) * ratio
                    value = value if finite else np.float32(0)
                    fixed = np.int32(
                        value + (np.float32(0.5) if value >= np.float32(0) else np.float32(-0.5))
                    )
                    above = (fixed + np.int32(128)) >> np.int32(8)
                    high[i] = np.int8(above)
                    low[i] = np.int8(fixed - (above << np.int32(8)))
                    total += fixed
                for i in range(stop, start + block):
                    high[i] = np.int8(0)
                    low[i] = np.int8(0)
                totals[b] = total

    return few_bits_inputs


def _make(bits: int, table: bool) -> Callable[[], Any]:
    def make() -> Any:
        one, two = make_block(1, bits, table), make_block(2, bits, table)
        inputs_of_step = 32 // bits

        @cfunc(types.void(types.CPointer(types.int64)), fastmath=FAST, error_model="numpy")
        def few_bits_linear(call):
            """What each thread runs: panels, with all rows or a part of them, until there are none left."""
            counter, sums = address_of(call) + 8 * at.NEXT, _sums_of_a_chunk()
            held = address_of(sums)
            rows, blocks, block, outputs = call[at.ROWS], call[at.BLOCKS], call[at.BLOCK], call[at.OUTPUTS]
            panels, size = -(-outputs // WIDTH), -(-rows // call[at.PARTS])
            steps = block // inputs_of_step
            panel_bytes, x_stride, of_row = blocks * steps * STEP, blocks * block, 4 * blocks
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
                        scales = call[at.SCALES] + 4 * WIDTH * group
                        zeros = call[at.ZEROS] + call[at.ZERO_STRIDE] * group
                        now = codes + b * steps * STEP
                        soon = now + steps * STEP if b + 1 < blocks else next_codes
                        row = 0
                        while row < count:
                            x = (first + row) * x_stride + b * block
                            of = 4 * ((first + row) * blocks + b)
                            to = held + 4 * WIDTH * row
                            if count - row > 1:
                                two(
                                    now, steps, call[at.HIGH] + x, call[at.LOW] + x, x_stride, call[at.FACTORS] + of,
                                    call[at.TOTALS] + of, of_row, scales, zeros, to, soon,
                                )  # fmt: skip
                                row += 2
                            else:
                                one(
                                    now, steps, call[at.HIGH] + x, call[at.LOW] + x, x_stride, call[at.FACTORS] + of,
                                    call[at.TOTALS] + of, of_row, scales, zeros, to, soon,
                                )  # fmt: skip
                                row += 1
                    _finish(held, count, call[at.OUT] + 2 * first * outputs, outputs, panel)

        return few_bits_linear

    return make


def kernels() -> dict[str, Callable[[], Any]]:
    # Processors with bfloat16 instructions multiply bytes too.
    if chosen() < CpuKind.AVX512_BF16:
        return {}
    return {
        "few_bits_inputs": make_inputs,
        "few_bits_linear_int8": _make(8, False),
        "few_bits_linear_int4": _make(4, False),
        "few_bits_linear_e2m1": _make(4, True),
    }
