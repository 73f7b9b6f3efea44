"""Products of numbers of 8 bits, four side by side in 32, whose sums are exact integers (AVX512-VNNI), and what turns numbers into
such codes and sums into numbers.

The instruction multiplies numbers from 0 to 255 with those from -128 to 127. A left-hand number of 16 bits is two rows of 8: what
they sum up to, 256 times the one plus the other, is as exact as that number.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from lightllm.ops.cpu.kernels import pairs
from lightllm.ops.cpu.kernels.lowlevel import bits_of, kernel
from lightllm.ops.cpu.kernels.vectors import all_lanes, assembled_exp2, fold, larger, spread  # fmt: skip

LANES = pairs.LANES
_I8, _I32, _I64, _F32 = ir.IntType(8), ir.IntType(32), ir.IntType(64), ir.FloatType()
_INTS, _FLOATS, _BYTES = ir.VectorType(_I32, LANES), ir.VectorType(_F32, LANES), ir.VectorType(_I8, LANES)
_LINE = ir.VectorType(_I8, 4 * LANES)
LARGEST_SIGNED = 127 * 256 + 127
"""Of a left-hand number of two rows of -128 .. 127."""
LARGEST_UNSIGNED = 65535

product_of_signed = pairs.make_product(
    4, add=False, instruction=pairs.Instruction("vpdpbusd $2, $3, $0", _INTS)
)
"""The right-hand numbers are 0 .. 255."""
product_of_unsigned = pairs.make_product(
    4, add=False, instruction=pairs.Instruction("vpdpbusd $3, $2, $0", _INTS)
)
"""The left-hand ones are."""
transpose_raised = pairs.make_transpose(flipped=0x80808080)
"""`transpose_pairs` of codes from -128 to 127, which become 128 more."""


@intrinsic
def mix_four(context: Any, a: Any, b: Any, c: Any, d: Any, out: Any) -> Any:
    """64 codes of four addresses become 64 quads at a fifth, in the order of `mixed_place`: that of the cheapest instructions."""

    def make(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        one, two, three, four = (
            builder.load(pairs.pointer_to(builder, address, 0, _LINE), align=1) for address in arguments[:4]
        )
        words = ir.VectorType(ir.IntType(16), 2 * LANES)
        for half in range(2):
            low, high = (
                builder.bitcast(pairs.interleaved(builder, x, y, half, 1), words)
                for x, y in ((one, two), (three, four))
            )
            for quarter in range(2):
                place = pairs.pointer_to(builder, arguments[4], 64 * (2 * half + quarter), words)
                builder.store(pairs.interleaved(builder, low, high, quarter, 1), place, align=1)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 5), make


@kernel
def mixed_place(i):
    """Where number i is among the quads."""
    return i // 64 * 64 + i % 16 // 4 * 16 + i % 64 // 16 * 4 + i % 4


def _joined_sums(builder: Any, high: Any, low: Any) -> Any:
    """256 times the one plus the other, as floats."""
    return builder.fadd(
        builder.fmul(builder.sitofp(high, _FLOATS), all_lanes(256.0)), builder.sitofp(low, _FLOATS)
    )


@intrinsic
def scores_of(context: Any, high: Any, low: Any, count: Any, own: Any, factors: Any) -> Any:
    """float32 at `high` = (256 * (int32 there - own[0]) + (int32 at low - own[1])) * float(own[2]) * factors, for `count` of them, a
    multiple of LANES. Returns the largest. Addresses; own: two int32 and a float32."""

    def make(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        high, low, count, own, factors = arguments
        more, less = (
            spread(builder, builder.load(pairs.pointer_to(builder, own, 4 * i, _I32))) for i in range(2)
        )
        factor = spread(builder, builder.load(pairs.pointer_to(builder, own, 8, _F32)))
        most = cgutils.alloca_once_value(builder, all_lanes(-math.inf))
        step = ir.Constant(_I64, LANES)
        with cgutils.for_range_slice(builder, ir.Constant(_I64, 0), count, step, _I64) as (i, _):
            offset = builder.mul(i, ir.Constant(_I64, 4))
            sums = [
                builder.load(pairs.pointer_to(builder, builder.add(address, offset), 0, _INTS), align=4)
                for address in (high, low)
            ]
            value = _joined_sums(builder, builder.sub(sums[0], more), builder.sub(sums[1], less))
            of_key = builder.load(
                pairs.pointer_to(builder, builder.add(factors, offset), 0, _FLOATS), align=4
            )
            value = builder.fmul(value, builder.fmul(factor, of_key))
            builder.store(larger(builder, value, builder.load(most)), most)
            builder.store(value, pairs.pointer_to(builder, builder.add(high, offset), 0, _FLOATS), align=4)
        return fold(builder, builder.load(most), larger)

    return types.float32(*[types.int64] * 5), make


@intrinsic
def codes_of_weights(
    context: Any, scores: Any, count: Any, factor: Any, offset: Any, factors: Any, high: Any, low: Any
) -> Any:
    """w[i] = 2 ** (scores[i] * factor - offset), at most 1; returns their sum. 256 * high[i] + low[i] = w[i] * factors[i], rounded, in bytes.
    All but factor and offset are addresses; count: a multiple of LANES; factors: at most LARGEST_UNSIGNED."""

    def make(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        scores, count, factor, offset, factors, high, low = arguments
        factor, offset = spread(builder, factor), spread(builder, builder.fneg(offset))
        total = cgutils.alloca_once_value(builder, all_lanes(0.0))
        zero, step, four = ir.Constant(_I64, 0), ir.Constant(_I64, LANES), ir.Constant(_I64, 4)
        with cgutils.for_range_slice(builder, zero, count, step, _I64) as (i, _):
            at_byte = builder.mul(i, four)
            place = pairs.pointer_to(builder, builder.add(scores, at_byte), 0, _FLOATS)
            value = assembled_exp2(builder, builder.load(place, align=4), factor, offset)
            builder.store(builder.fadd(builder.load(total), value), total)
            of_key = pairs.pointer_to(builder, builder.add(factors, at_byte), 0, _FLOATS)
            value = builder.fmul(value, builder.load(of_key, align=4))
            code = builder.fptosi(builder.fadd(value, all_lanes(0.5)), _INTS)
            upper = builder.lshr(code, ir.Constant(_INTS, [8] * LANES))
            for address, part in ((high, upper), (low, code)):
                to = pairs.pointer_to(builder, builder.add(address, i), 0, _BYTES)
                builder.store(builder.trunc(part, _BYTES), to, align=1)
        return fold(builder, builder.load(total), lambda builder, a, b: builder.fadd(a, b))

    signature = types.float32(
        types.int64, types.int64, types.float32, types.float32, types.int64, types.int64, types.int64,
    )  # fmt: skip
    return signature, make


@intrinsic
def add_sums(context: Any, high: Any, low: Any, unit: Any, out: Any) -> Any:
    """64 float32 at out += (256 * int32 at high + int32 at low) * unit."""

    def make(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        high, low, unit, out = arguments
        unit = spread(builder, unit)
        for i in range(4):
            sums = [
                builder.load(pairs.pointer_to(builder, address, 64 * i, _INTS), align=4)
                for address in (high, low)
            ]
            place = pairs.pointer_to(builder, out, 64 * i, _FLOATS)
            more = builder.fmul(_joined_sums(builder, *sums), unit)
            builder.store(builder.fadd(builder.load(place, align=4), more), place, align=4)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.float32, types.int64), make


_ROUNDING = float(3 << 22)
"""Added to a float32 below 2 ** 22 it leaves the nearest integer in the lower bits."""
_ROUNDING_BITS = 0x4B400000


@kernel
def nearest(x):
    """int32"""
    return bits_of(x + np.float32(_ROUNDING)) - np.int32(_ROUNDING_BITS)
