"""A linear layer of bfloat16 weights for any number of rows, with the instruction that multiplies pairs (AVX512-BF16).

The weight lies in panels of WIDTH outputs, [inputs / 2, WIDTH, 2]: the pairs of one input of all outputs side by side. A
panel is read once from memory, one line after the other, and kept in the second cache while all rows of x are multiplied with
it, six at a time: 24 vectors of sums are as many as there are registers for.

Each output is one chain of sums over the inputs in their order, whatever other rows there are.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import cfunc, types
from numba.core import cgutils
from numba.extending import intrinsic

from lightllm.ops.cpu.calls import panel_linear as at
from lightllm.ops.cpu.calls.panel_linear import WIDTH
from lightllm.ops.cpu.kernels.lowlevel import FAST, address_of, floats, kernel, scratch, take_next, uint16s
from lightllm.ops.cpu_kind import CpuKind, chosen

_LANES = 16
_VECTORS = WIDTH // _LANES
_ROWS = 6
_CHUNK = 96
"""Rows whose sums are held at a time, in the first cache."""
_PAIRS = 1024
"""Pairs of inputs of a panel that are multiplied with all rows of a chunk before the next ones: 256 KiB."""

_I32, _I64 = ir.IntType(32), ir.IntType(64)
_FLOATS, _PAIRS16 = ir.VectorType(ir.FloatType(), _LANES), ir.VectorType(_I32, _LANES)
_HALVES = ir.VectorType(ir.IntType(16), _LANES)
_sums_of_a_chunk = scratch(_CHUNK * WIDTH)


def _number(value: int) -> ir.Constant:
    return ir.Constant(_I64, value)


def _place(builder: Any, address: Any, offset: int, element: ir.Type) -> Any:
    return builder.inttoptr(builder.add(address, _number(offset)), element.as_pointer())


def _make_add_products(rows: int) -> Any:
    @intrinsic
    def add_products(context: Any, x: Any, x_stride: Any, panel: Any, pairs: Any, sums: Any) -> Any:
        """sums [rows, WIDTH] += x [rows, 2 * pairs] panel [pairs, WIDTH, 2]. Addresses; x_stride in bytes."""

        def make(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            x, x_stride, panel, pairs, sums = arguments
            places = [_place(builder, sums, 4 * _LANES * i, _FLOATS) for i in range(rows * _VECTORS)]
            held = [cgutils.alloca_once_value(builder, builder.load(place, align=4)) for place in places]
            firsts = [builder.add(x, builder.mul(x_stride, _number(row))) for row in range(rows)]
            function = ir.FunctionType(_FLOATS, [_FLOATS, _PAIRS16, _PAIRS16])
            multiply = ir.InlineAsm(function, "vdpbf16ps $3, $2, $0", "=v,0,v,v")
            with cgutils.for_range_slice(builder, _number(0), pairs, _number(1), _I64) as (i, _):
                line = builder.add(panel, builder.mul(i, _number(4 * WIDTH)))
                weights = [
                    builder.load(_place(builder, line, 4 * _LANES * j, _PAIRS16), align=4)
                    for j in range(_VECTORS)
                ]
                offset = builder.mul(i, _number(4))
                for row, first in enumerate(firsts):
                    pair = builder.load(_place(builder, builder.add(first, offset), 0, _I32), align=2)
                    inputs = _spread(builder, pair)
                    for j, weight in enumerate(weights):
                        total = held[row * _VECTORS + j]
                        builder.store(builder.call(multiply, [builder.load(total), inputs, weight]), total)
            for total, place in zip(held, places, strict=True):
                builder.store(builder.load(total), place, align=4)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 5), make

    return add_products


def _spread(builder: Any, pair: Any) -> Any:
    none = ir.Constant(_PAIRS16, ir.Undefined)
    one = builder.insert_element(none, pair, ir.Constant(_I32, 0))
    return builder.shuffle_vector(one, none, ir.Constant(_PAIRS16, [0] * _LANES))


@intrinsic
def _round_panel(context: Any, sums: Any, out: Any) -> Any:
    """WIDTH float32 at one address become bfloat16 at another."""

    def make(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        function = ir.FunctionType(_HALVES, [_FLOATS])
        narrow = ir.InlineAsm(function, "vcvtneps2bf16 $1, $0", "=v,v")
        for j in range(_VECTORS):
            total = builder.load(_place(builder, arguments[0], 4 * _LANES * j, _FLOATS), align=4)
            builder.store(
                builder.call(narrow, [total]), _place(builder, arguments[1], 2 * _LANES * j, _HALVES), align=2
            )
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), make


@kernel
def _begin(sums, rows, bias, panel):
    for row in range(rows):
        for i in range(WIDTH):
            sums[row * WIDTH + i] = floats(bias)[panel * WIDTH + i] if bias else np.float32(0)


@kernel
def _finish(sums, rows, out, outputs, panel):
    """out: address of the first row's first output."""
    width = min(WIDTH, outputs - panel * WIDTH)
    for row in range(rows):
        total, place = sums + 4 * WIDTH * row, out + 2 * (row * outputs + panel * WIDTH)
        if width == WIDTH:
            _round_panel(total, place)
        else:
            _round_panel(total, total)
            rounded, to = uint16s(total), uint16s(place)
            for i in range(width):
                to[i] = rounded[i]


def make() -> Any:
    one, two, three, four, five, six = (_make_add_products(rows) for rows in range(1, _ROWS + 1))

    @kernel
    def add_products(rows, x, x_stride, panel, pairs, sums):
        if rows == 6:
            six(x, x_stride, panel, pairs, sums)
        elif rows == 5:
            five(x, x_stride, panel, pairs, sums)
        elif rows == 4:
            four(x, x_stride, panel, pairs, sums)
        elif rows == 3:
            three(x, x_stride, panel, pairs, sums)
        elif rows == 2:
            two(x, x_stride, panel, pairs, sums)
        else:
            one(x, x_stride, panel, pairs, sums)

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
            weights = call[at.PANELS] + panel * pairs * 4 * WIDTH
            for first in range(begin_row, end_row, _CHUNK):
                count = min(_CHUNK, end_row - first)
                blocks = -(-count // _ROWS)
                _begin(sums, count, call[at.BIAS], panel)
                for start in range(0, pairs, _PAIRS):
                    x, some = call[at.X] + first * x_stride + 4 * start, min(_PAIRS, pairs - start)
                    done = 0
                    for block in range(blocks):
                        taken = (count - done) // (blocks - block)
                        add_products(
                            taken, x + done * x_stride, x_stride, weights + 4 * WIDTH * start, some,
                            held + 4 * WIDTH * done,
                        )  # fmt: skip
                        done += taken
                _finish(held, count, call[at.OUT] + 2 * first * outputs, outputs, panel)

    return panel_linear


def kernels() -> dict[str, Callable[[], Any]]:
    # A processor with a matrix unit (AMX) multiplies many rows faster with it, as oneDNN does.
    return {"panel_linear_bfloat16": make} if chosen() == CpuKind.AVX512_BF16 else {}
