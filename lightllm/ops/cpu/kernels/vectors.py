"""Loops of softmax over bfloat16 written as vectors of 16 floats (AVX512-BF16): what a compiler makes of plain ones takes three
times as long."""

from __future__ import annotations

import math
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

WIDTH = 16
_F32, _I64 = ir.FloatType(), ir.IntType(64)
_VECTOR, _HALVES = ir.VectorType(_F32, WIDTH), ir.VectorType(ir.IntType(16), WIDTH)
_EXP2 = tuple(math.log(2) ** k / math.factorial(k) for k in range(5, -1, -1))
"""2 ** x within 2.5e-6 relative for |x| <= 1 / 2 (Taylor): for what is rounded to bfloat16 afterwards."""
_LEAST = -200.0
"""2 to this is 0 in float32, and so is the weight of a key whose score is less."""


def all_lanes(value: float) -> ir.Constant:
    return ir.Constant(_VECTOR, [ir.Constant(_F32, value)] * WIDTH)


def spread(builder: Any, value: Any) -> Any:
    """A vector of this number."""
    undefined = ir.Constant(ir.VectorType(value.type, WIDTH), ir.Undefined)
    one = builder.insert_element(undefined, value, ir.Constant(ir.IntType(32), 0))
    return builder.shuffle_vector(
        one, undefined, ir.Constant(ir.VectorType(ir.IntType(32), WIDTH), [0] * WIDTH)
    )


def larger(builder: Any, a: Any, b: Any) -> Any:
    """b where one is NaN."""
    return builder.select(builder.fcmp_ordered(">", a, b), a, b)


def fold(builder: Any, vector: Any, combine: Any) -> Any:
    """All 16 numbers into one, halves with halves."""
    width = WIDTH
    while width > 1:
        width //= 2
        halves = [
            builder.shuffle_vector(
                vector,
                vector,
                ir.Constant(ir.VectorType(ir.IntType(32), width), list(range(first, first + width))),
            )
            for first in (0, width)
        ]
        vector = combine(builder, *halves)
    return builder.extract_element(vector, ir.Constant(ir.IntType(32), 0))


def _at(builder: Any, pointer: Any, index: Any, vector: Any) -> Any:
    return builder.bitcast(builder.gep(pointer, [index]), vector.as_pointer())


@intrinsic
def highest(context: Any, numbers: Any, start: Any, count: Any) -> Any:
    """Of `count` floats, a multiple of 16."""

    def make(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer, start, count = arguments
        found = cgutils.alloca_once_value(
            builder, builder.load(_at(builder, pointer, start, _VECTOR), align=4)
        )
        step = ir.Constant(_I64, WIDTH)
        with cgutils.for_range_slice(builder, step, count, step, _I64) as (i, _):
            more = builder.load(_at(builder, pointer, builder.add(start, i), _VECTOR), align=4)
            builder.store(larger(builder, more, builder.load(found)), found)
        return fold(builder, builder.load(found), larger)

    return types.float32(types.CPointer(types.float32), types.int64, types.int64), make


@intrinsic
def weights_of(
    context: Any, scores: Any, start: Any, count: Any, factor: Any, offset: Any, weights: Any
) -> Any:
    """weights[i] = 2 ** (scores[i] * factor - offset) in bfloat16, for `count` numbers, a multiple of 16, from `start` on; their
    sum in float32."""

    def make(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer, start, count, factor, offset, weights = arguments
        factor, offset = spread(builder, factor), spread(builder, builder.fneg(offset))
        total = cgutils.alloca_once_value(builder, all_lanes(0.0))
        with cgutils.for_range_slice(
            builder, ir.Constant(_I64, 0), count, ir.Constant(_I64, WIDTH), _I64
        ) as (i, _):
            place = builder.add(start, i)
            score = builder.load(_at(builder, pointer, place, _VECTOR), align=4)
            value = assembled_exp2(builder, score, factor, offset)
            builder.store(builder.fadd(builder.load(total), value), total)
            halves = _assembled(builder, "vcvtneps2bf16 $1, $0", "=v,v", _HALVES, [value])
            builder.store(halves, _at(builder, weights, place, _HALVES), align=2)
        return fold(builder, builder.load(total), lambda builder, a, b: builder.fadd(a, b))

    signature = types.float32(
        types.CPointer(types.float32), types.int64, types.int64, types.float32, types.float32, types.CPointer(types.uint16),
    )  # fmt: skip
    return signature, make


def assembled_exp2(builder: Any, score: Any, factor: Any, offset: Any) -> Any:
    """2 ** (score * factor + offset), vectors all of them."""
    fma = cgutils.get_or_insert_function(
        builder.module, ir.FunctionType(_VECTOR, [_VECTOR] * 3), f"llvm.fma.v{WIDTH}f32"
    )
    nearest = cgutils.get_or_insert_function(
        builder.module, ir.FunctionType(_VECTOR, [_VECTOR]), f"llvm.rint.v{WIDTH}f32"
    )
    power = builder.call(fma, [score, factor, offset])
    power = builder.select(builder.fcmp_ordered("<", power, all_lanes(_LEAST)), all_lanes(_LEAST), power)
    whole = builder.call(nearest, [power])
    rest = builder.fsub(power, whole)
    value = all_lanes(_EXP2[0])
    for coefficient in _EXP2[1:]:
        value = builder.call(fma, [value, rest, all_lanes(coefficient)])
    return _assembled(builder, "vscalefps $2, $1, $0", "=v,v,v", _VECTOR, [value, whole])


def _assembled(builder: Any, text: str, constraints: str, result: Any, arguments: list[Any]) -> Any:
    function = ir.FunctionType(result, [argument.type for argument in arguments])
    return builder.call(ir.InlineAsm(function, text, constraints), arguments)
