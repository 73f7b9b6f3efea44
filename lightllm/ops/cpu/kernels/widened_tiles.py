"""Products of some rows of inputs with a block of a panel, whose sums stay in registers. Each sum is one chain over the inputs in their
order, whether the codes are widened here or were before."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from lightllm.ops.cpu.kernels.widening import (
    F32,
    FLOATS,
    I8,
    I32,
    I64,
    LANES,
    NUMBERS,
    VECTORS,
    WIDE,
    WIDTH,
    Widening,
    number,
    place,
)

_LINE = 64


def _spread(builder: Any, value: Any, vector: ir.VectorType) -> Any:
    none = ir.Constant(vector, ir.Undefined)
    one = builder.insert_element(none, value, ir.Constant(I32, 0))
    return builder.shuffle_vector(one, none, ir.Constant(ir.VectorType(I32, LANES), [0] * LANES))


def _fma(builder: Any, a: Any, b: Any, total: Any) -> Any:
    function = ir.FunctionType(FLOATS, [FLOATS] * 3)
    return builder.call(
        cgutils.get_or_insert_function(builder.module, function, f"llvm.fma.v{LANES}f32"), [a, b, total]
    )


def _pairs(builder: Any, a: Any, b: Any, total: Any) -> Any:
    function = ir.FunctionType(FLOATS, [FLOATS, NUMBERS, NUMBERS])
    return builder.call(ir.InlineAsm(function, "vdpbf16ps $3, $2, $0", "=v,0,v,v"), [total, a, b])


def _fetch(builder: Any, address: Any) -> None:
    function = ir.FunctionType(ir.VoidType(), [I64])
    builder.call(ir.InlineAsm(function, "prefetcht1 ($0)", "r", side_effect=True), [address])


def _add_up(builder: Any, held: dict[int, Any], total: Any, scales: Any, zeros: Any, to: Any) -> None:
    """A row's sums of a block, less what zeros add to them and times their scales, to the sums at `to`."""
    whole = cgutils.alloca_once_value(builder, ir.Constant(F32, 0.0))
    there_are = builder.icmp_signed("!=", zeros, number(0))
    with builder.if_then(there_are):
        builder.store(builder.fneg(builder.load(place(builder, total, 0, F32))), whole)
        less = _spread(builder, builder.load(whole), FLOATS)
        for j, one in held.items():
            zero = builder.load(place(builder, zeros, LANES * j, ir.VectorType(I8, LANES)), align=1)
            zero = builder.sitofp(builder.sext(zero, NUMBERS), FLOATS)
            builder.store(_fma(builder, less, zero, builder.load(one)), one)
    for j, one in held.items():
        scale = builder.load(place(builder, scales, 4 * LANES * j, FLOATS), align=4)
        at = place(builder, to, 4 * LANES * j, FLOATS)
        builder.store(_fma(builder, builder.load(one), scale, builder.load(at, align=4)), at, align=4)


def make_tile(rows: int, widening: Widening, pairs: bool) -> Any:
    """sums [rows, WIDTH] are more by those of a block. All are addresses, strides are bytes; steps: of codes; x: its rows' inputs of the
    block; totals: of the rows' blocks; of_row: from row to row there; soon: lines that are asked for meanwhile."""
    element, vector = (I32, NUMBERS) if pairs else (F32, FLOATS)
    multiply = _pairs if pairs else _fma
    # With 16 registers the sums of six rows are held for two vectors at a time.
    size = VECTORS if rows < 3 or LANES == 16 else 2
    runs = [range(first, first + size) for first in range(0, VECTORS, size)]
    lines = 1 if widening is WIDE else max(widening.nbytes // _LINE, 1)

    @intrinsic
    def tile(
        context: Any, codes: Any, steps: Any, x: Any, x_stride: Any, totals: Any, of_row: Any, scales: Any, zeros: Any, sums: Any,
        soon: Any,
    ) -> Any:  # fmt: skip
        def make(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            codes, steps, x, x_stride, totals, of_row, scales, zeros, sums, soon = arguments
            firsts = [builder.add(x, builder.mul(x_stride, number(row))) for row in range(rows)]
            for own in runs:
                none = ir.Constant(FLOATS, [ir.Constant(F32, 0.0)] * LANES)
                held = [{j: cgutils.alloca_once_value(builder, none) for j in own} for _ in range(rows)]
                with cgutils.for_range_slice(builder, number(0), steps, number(1), I64) as (i, _):
                    line = builder.add(codes, builder.mul(i, number(widening.nbytes)))
                    ahead = builder.add(soon, builder.mul(i, number(_LINE * lines)))
                    for k in range(lines if own is runs[0] else 0):
                        _fetch(builder, builder.add(ahead, number(_LINE * k)))
                    at = builder.mul(i, number(4 * widening.units))
                    for unit, columns in enumerate(widening.columns(builder, line)):
                        for row, first in enumerate(firsts):
                            given = place(builder, builder.add(first, at), 4 * unit, element)
                            one = _spread(builder, builder.load(given, align=2), vector)
                            for j, total in held[row].items():
                                column = builder.bitcast(columns[j], vector)
                                builder.store(multiply(builder, one, column, builder.load(total)), total)
                for row in range(rows):
                    to = builder.add(sums, number(4 * WIDTH * row))
                    total = builder.add(totals, builder.mul(of_row, number(row)))
                    _add_up(builder, held[row], total, scales, zeros, to)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 10), make

    return tile


def make_widen(widening: Widening) -> Any:
    """Units of so many steps, [steps * units, WIDTH] of 4 bytes each. All are addresses."""

    @intrinsic
    def widen(context: Any, codes: Any, steps: Any, to: Any) -> Any:
        def make(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            codes, steps, to = arguments
            with cgutils.for_range_slice(builder, number(0), steps, number(1), I64) as (i, _):
                line = builder.add(codes, builder.mul(i, number(widening.nbytes)))
                out = builder.add(to, builder.mul(i, number(4 * WIDTH * widening.units)))
                for unit, columns in enumerate(widening.columns(builder, line)):
                    for j, column in enumerate(columns):
                        at = place(builder, out, 4 * (WIDTH * unit + LANES * j), column.type)
                        builder.store(column, at, align=4)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 3), make

    return widen
