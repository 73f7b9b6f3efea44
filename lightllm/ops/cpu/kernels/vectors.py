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
ROWS, COLUMNS = 4, 64
"""What softmax takes at a time."""
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


def _plus(builder: Any, a: Any, b: Any) -> Any:
    # With a flag of its own it gets none of the kernel's, which allow other orders.
    return builder.fadd(a, b, flags=("nsz",))


def _picked(builder: Any, a: Any, b: Any, order: list[int]) -> Any:
    return builder.shuffle_vector(
        a,
        b,
        ir.Constant(ir.VectorType(ir.IntType(32), WIDTH), [ir.Constant(ir.IntType(32), i) for i in order]),
    )


def fold_four(builder: Any, vectors: list[Any], combine: Any) -> Any:
    """All 16 numbers of each of four vectors into one, halves with halves: found in lanes 4 i .. 4 i + 3 for vector i."""
    lanes = range(WIDTH)

    def joined(a: Any, b: Any, part: int) -> Any:
        """The lower half of each part of a's and b's, with the upper one."""
        sources = [i for first in (0, WIDTH) for i in range(first, first + WIDTH) if i % part < part // 2]
        return combine(
            builder, _picked(builder, a, b, sources), _picked(builder, a, b, [i + part // 2 for i in sources])
        )

    both = joined(joined(vectors[0], vectors[1], 16), joined(vectors[2], vectors[3], 16), 8)
    for step in (2, 1):
        both = combine(builder, both, _picked(builder, both, both, [i ^ step for i in lanes]))
    return both


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
def weights_of_rows(
    context: Any, scores: Any, scale: Any, log2_e: Any, weights: Any, state: Any, found: Any
) -> Any:
    """Of ROWS rows of COLUMNS scores each: weights = e ** (scores * scale - above) in bfloat16, where `above` is the highest of a
    row or what its state says, a pair of numbers of which it is the first. found, float32 [2, ROWS]: `above` and the sums of the
    weights. All at addresses. Several rows at once, for one alone would mostly wait for itself."""

    def make(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        scores, scale, log2_e, weights, state, found = arguments
        part = ir.VectorType(_F32, ROWS)

        def place(address: Any, offset: int, vector: Any) -> Any:
            return builder.inttoptr(builder.add(address, ir.Constant(_I64, offset)), vector.as_pointer())

        def some(vector: Any, order: list[int], kind: Any) -> Any:
            mask = ir.Constant(
                ir.VectorType(ir.IntType(32), kind.count), [ir.Constant(ir.IntType(32), i) for i in order]
            )
            return builder.shuffle_vector(vector, vector, mask)

        def score(row: int, j: int) -> Any:
            return builder.load(place(scores, 4 * (row * COLUMNS + WIDTH * j), _VECTOR), align=4)

        highest = []
        for row in range(ROWS):
            vector = score(row, 0)
            for j in range(1, COLUMNS // WIDTH):
                vector = larger(builder, score(row, j), vector)
            highest.append(vector)
        of_rows = some(fold_four(builder, highest, larger), [4 * row for row in range(ROWS)], part)
        pairs = ir.VectorType(_F32, 2 * ROWS)
        before = some(builder.load(place(state, 0, pairs), align=4), [2 * row for row in range(ROWS)], part)
        above = larger(builder, before, builder.fmul(of_rows, some(spread(builder, scale), [0] * ROWS, part)))
        builder.store(above, place(found, 0, part), align=4)
        offset = builder.fneg(builder.fmul(above, some(spread(builder, log2_e), [0] * ROWS, part)))
        factor = spread(builder, builder.fmul(scale, log2_e))
        sums = []
        for row in range(ROWS):
            own = some(offset, [row] * WIDTH, _VECTOR)
            total = None
            for j in range(COLUMNS // WIDTH):
                value = assembled_exp2(builder, score(row, j), factor, own)
                total = value if total is None else _plus(builder, total, value)
                halves = _assembled(builder, "vcvtneps2bf16 $1, $0", "=v,v", _HALVES, [value])
                builder.store(halves, place(weights, 2 * (row * COLUMNS + WIDTH * j), _HALVES), align=2)
            sums.append(total)
        of_rows = some(fold_four(builder, sums, _plus), [4 * row for row in range(ROWS)], part)
        builder.store(of_rows, place(found, 4 * ROWS, part), align=4)
        return context.get_dummy_value()

    signature = types.void(types.int64, types.float32, types.float32, types.int64, types.int64, types.int64)
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
