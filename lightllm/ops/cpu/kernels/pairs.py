"""Products of bfloat16 matrices whose sums stay in registers, with the instruction that multiplies pairs (AVX512-BF16).

The right-hand matrix lies in pairs: two numbers that are summed up stand side by side, [n / 2, columns, 2]. Each sum is one
chain over the pairs in their order.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from lightllm.ops.cpu.kernels.lowlevel import kernel

LANES = 16
"""float32 of a vector, and pairs."""
_I32, _I64 = ir.IntType(32), ir.IntType(64)
_FLOATS, _PAIRS = ir.VectorType(ir.FloatType(), LANES), ir.VectorType(_I32, LANES)
_HALVES = ir.VectorType(ir.IntType(16), LANES)


def _number(value: int) -> ir.Constant:
    return ir.Constant(_I64, value)


def _place(builder: Any, address: Any, offset: int, element: ir.Type) -> Any:
    return builder.inttoptr(builder.add(address, _number(offset)), element.as_pointer())


def _spread(builder: Any, pair: Any) -> Any:
    none = ir.Constant(_PAIRS, ir.Undefined)
    one = builder.insert_element(none, pair, ir.Constant(_I32, 0))
    return builder.shuffle_vector(one, none, ir.Constant(_PAIRS, [0] * LANES))


def make_product(rows: int, vectors: int, add: bool) -> Any:
    """sums [rows, 16 * vectors] = left [rows, 2 * pairs] right [pairs, 16 * vectors, 2], or with `add` are more by it. All at
    addresses, with bytes from row to row. There are 32 registers: rows * vectors + vectors + 1 are needed."""
    shape = [(row, j) for row in range(rows) for j in range(vectors)]
    multiplying = ir.InlineAsm(
        ir.FunctionType(_FLOATS, [_FLOATS, _PAIRS, _PAIRS]), "vdpbf16ps $3, $2, $0", "=v,0,v,v"
    )

    @intrinsic
    def product(
        context: Any, left: Any, left_stride: Any, right: Any, right_stride: Any, pairs: Any, sums: Any, sums_stride: Any
    ) -> Any:  # fmt: skip
        def make(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            left, left_stride, right, right_stride, pairs, sums, sums_stride = arguments
            lines = [builder.add(sums, builder.mul(sums_stride, _number(row))) for row in range(rows)]
            places = [_place(builder, lines[row], 4 * LANES * j, _FLOATS) for row, j in shape]
            none = ir.Constant(_FLOATS, [0.0] * LANES)
            held = [
                cgutils.alloca_once_value(builder, builder.load(place, align=4) if add else none)
                for place in places
            ]
            firsts = [builder.add(left, builder.mul(left_stride, _number(row))) for row in range(rows)]
            with cgutils.for_range_slice(builder, _number(0), pairs, _number(1), _I64) as (i, _):
                line = builder.add(right, builder.mul(i, right_stride))
                columns = [
                    builder.load(_place(builder, line, 4 * LANES * j, _PAIRS), align=4)
                    for j in range(vectors)
                ]
                offset = builder.mul(i, _number(4))
                for row, first in enumerate(firsts):
                    pair = builder.load(_place(builder, builder.add(first, offset), 0, _I32), align=2)
                    pair = _spread(builder, pair)
                    for j, column in enumerate(columns):
                        total = held[row * vectors + j]
                        builder.store(builder.call(multiplying, [builder.load(total), pair, column]), total)
            for total, place in zip(held, places, strict=True):
                builder.store(builder.load(total), place, align=4)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 7), make

    return product


@intrinsic
def round_vector(context: Any, numbers: Any, out: Any) -> Any:
    """LANES float32 at one address become bfloat16 at another."""

    def make(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        narrowing = ir.InlineAsm(ir.FunctionType(_HALVES, [_FLOATS]), "vcvtneps2bf16 $1, $0", "=v,v")
        value = builder.load(_place(builder, arguments[0], 0, _FLOATS), align=4)
        builder.store(builder.call(narrowing, [value]), _place(builder, arguments[1], 0, _HALVES), align=2)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), make


_PIECE, _ROWS = 32, 8
_product, _add_product = (make_product(_ROWS, _PIECE // LANES, add) for add in (False, True))


@kernel
def product(left, left_stride, right, right_stride, out, out_stride, count):
    """As `kernels/tiles.py` has it, for pieces of the same size."""
    for row in range(0, _PIECE, _ROWS):
        _product(
            left + row * left_stride, left_stride, right, right_stride, _PIECE // 2 * count,
            out + row * out_stride, out_stride,
        )  # fmt: skip


@kernel
def add_product(left, left_stride, right, right_stride, out, out_stride, count):
    """The same, added to what is there."""
    for row in range(0, _PIECE, _ROWS):
        _add_product(
            left + row * left_stride, left_stride, right, right_stride, _PIECE // 2 * count,
            out + row * out_stride, out_stride,
        )  # fmt: skip
