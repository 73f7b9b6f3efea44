"""Products of bytes whose sums stay in registers, with the instruction that multiplies and adds up four (AVX512-VNNI).

Weights are unsigned, of 8 bits or two in a byte; inputs are numbers of 16 bits in two signed bytes, 256 * high + low.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from lightllm.ops.cpu.calls.few_bits_linear import WIDTH

LANES = 16
VECTORS = WIDTH // LANES
STEP = 64 * VECTORS
"""Bytes of codes: 4 inputs of WIDTH outputs, or 8 of them in 4 bits."""
TABLE = (12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0)
"""Twice the number that each code of a float of 4 bits (E2M1) stands for, and 12."""
_I8, _I16, _I32, _I64, _F32 = ir.IntType(8), ir.IntType(16), ir.IntType(32), ir.IntType(64), ir.FloatType()
_BYTES, _WORDS, _SUMS, _FLOATS = (
    ir.VectorType(_I8, 64), ir.VectorType(_I16, 32), ir.VectorType(_I32, LANES), ir.VectorType(_F32, LANES),
)  # fmt: skip
_FEW = ir.VectorType(_I8, LANES)


def _number(value: int) -> ir.Constant:
    return ir.Constant(_I64, value)


def _all(vector: ir.VectorType, value: int) -> ir.Constant:
    return ir.Constant(vector, [ir.Constant(vector.element, value)] * vector.count)


def _place(builder: Any, address: Any, offset: int, element: ir.Type) -> Any:
    return builder.inttoptr(builder.add(address, _number(offset)), element.as_pointer())


def _spread(builder: Any, value: Any, vector: ir.VectorType) -> Any:
    none = ir.Constant(vector, ir.Undefined)
    one = builder.insert_element(none, value, ir.Constant(_I32, 0))
    return builder.shuffle_vector(
        one, none, ir.Constant(ir.VectorType(_I32, vector.count), [0] * vector.count)
    )


def _codes(builder: Any, line: Any, part: int, bits: int, table: bool) -> list[Any]:
    """Of four (or with `part` 1 the next four) inputs those of all outputs, a byte each."""
    found = []
    for j in range(VECTORS):
        codes = builder.load(_place(builder, line, 64 * j, _BYTES), align=1)
        if bits == 4:
            if part:
                words = builder.lshr(builder.bitcast(codes, _WORDS), _all(_WORDS, 4))
                codes = builder.bitcast(words, _BYTES)
            codes = builder.and_(codes, _all(_BYTES, 15))
        if table:
            look = ir.InlineAsm(ir.FunctionType(_BYTES, [_BYTES, _BYTES]), "vpshufb $2, $1, $0", "=v,v,v")
            numbers = ir.Constant(_BYTES, [ir.Constant(_I8, value) for value in TABLE * 4])
            codes = builder.call(look, [numbers, codes])
        found.append(codes)
    return found


def _add_up(builder: Any, held: Any, factor: Any, total: Any, scales: Any, zeros: Any, to: Any) -> None:
    """A row's sums of a block, [high, low][VECTORS], as floats to the sums at `to`."""
    factor = _spread(builder, builder.load(_place(builder, factor, 0, _F32)), _FLOATS)
    whole = _spread(builder, builder.load(_place(builder, total, 0, _I32)), _SUMS)
    for j in range(VECTORS):
        above, below = (builder.load(held[plane][j]) for plane in range(2))
        zero = builder.zext(builder.load(_place(builder, zeros, LANES * j, _FEW), align=1), _SUMS)
        exact = builder.add(builder.shl(above, _all(_SUMS, 8)), below)
        exact = builder.sitofp(builder.sub(exact, builder.mul(zero, whole)), _FLOATS)
        scale = builder.load(_place(builder, scales, 4 * LANES * j, _FLOATS), align=4)
        place = _place(builder, to, 4 * LANES * j, _FLOATS)
        more = builder.fmul(exact, builder.fmul(scale, factor))
        builder.store(builder.fadd(builder.load(place, align=4), more), place, align=4)


def make_block(rows: int, bits: int, table: bool) -> Any:
    """sums [rows, WIDTH] are more by those of a block's inputs: (code - zero) * input, times the output's scale and the row's
    factor. All are addresses, strides are bytes; steps: of codes; soon: codes that are asked for meanwhile."""
    multiplying = ir.InlineAsm(
        ir.FunctionType(_SUMS, [_SUMS, _BYTES, _SUMS]), "vpdpbusd $3, $2, $0", "=v,0,v,v"
    )
    asking = ir.InlineAsm(ir.FunctionType(ir.VoidType(), [_I64]), "prefetcht1 ($0)", "r", side_effect=True)
    parts = 8 // bits

    @intrinsic
    def block(
        context: Any, codes: Any, steps: Any, high: Any, low: Any, x_stride: Any, factors: Any, totals: Any, of_row: Any, scales: Any,
        zeros: Any, sums: Any, soon: Any,
    ) -> Any:  # fmt: skip
        def make(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            codes, steps, high, low, x_stride, factors, totals, of_row, scales, zeros, sums, soon = arguments
            none = _all(_SUMS, 0)
            held = [
                [[cgutils.alloca_once_value(builder, none) for _ in range(VECTORS)] for _ in range(2)]
                for _ in range(rows)
            ]
            planes = [
                [builder.add(plane, builder.mul(x_stride, _number(row))) for plane in (high, low)]
                for row in range(rows)
            ]
            with cgutils.for_range_slice(builder, _number(0), steps, _number(1), _I64) as (i, _):
                offset = builder.mul(i, _number(STEP))
                line = builder.add(codes, offset)
                for j in range(VECTORS):
                    builder.call(asking, [builder.add(builder.add(soon, offset), _number(64 * j))])
                for part in range(parts):
                    own = _codes(builder, line, part, bits, table)
                    at = builder.add(builder.mul(i, _number(4 * parts)), _number(4 * part))
                    for row in range(rows):
                        for plane in range(2):
                            four = builder.load(
                                _place(builder, builder.add(planes[row][plane], at), 0, _I32), align=1
                            )
                            inputs = _spread(builder, four, _SUMS)
                            for j in range(VECTORS):
                                total = held[row][plane][j]
                                builder.store(
                                    builder.call(multiplying, [builder.load(total), own[j], inputs]), total
                                )
            for row in range(rows):
                to = builder.add(sums, _number(4 * WIDTH * row))
                of = builder.mul(of_row, _number(row))
                numbers = [builder.add(address, of) for address in (factors, totals)]
                _add_up(builder, held[row], *numbers, scales, zeros, to)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 12), make

    return block
