"""Products of a few rows with keys and values where they lie (AVX512-BF16): for a token that is decoded, arranging them in memory first
takes longer than multiplying them.

The sums are those of `pairs.make_product`, to the bit: one chain over the pairs in their order. Lanes are made in registers.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from lightllm.ops.cpu.calls.block_attention import BLOCK
from lightllm.ops.cpu.kernels.lowlevel import kernel
from lightllm.ops.cpu.kernels.pairs import (
    FLOATS,
    I32,
    I64,
    LANES,
    LINE,
    PAIRS,
    PAIRS_OF_BFLOAT16,
    fetch,
    interleaved,
    number,
    pointer_to,
    shuffled,
)
from lightllm.ops.cpu.kernels.vectors import spread

MOST_ROWS = 4
"""For which that is faster, of keys."""
_GROUPS = BLOCK // LANES
_HALF = LANES // 2
_VECTORS = {8: 3, 4: 6, 2: 8}
"""Vectors of sums a row, and for how many rows they are registers."""
MOST_ROWS_OF_VALUES = max(_VECTORS.values())


def _multiplied(builder: Any, total: Any, pair: Any, column: Any) -> None:
    """Adds the products of a pair and a column to the sums at `total`."""
    instruction = PAIRS_OF_BFLOAT16
    multiplying = ir.InlineAsm(ir.FunctionType(FLOATS, [FLOATS, PAIRS, PAIRS]), instruction.text, "=v,0,v,v")
    builder.store(builder.call(multiplying, [builder.load(total), pair, column]), total)


def _columns(builder: Any, addresses: list[Any], offset: int) -> list[Any]:
    """LANES lines, of each the pairs from `offset` bytes on: _HALF vectors, each one pair of all lines."""
    narrow = ir.VectorType(I32, _HALF)

    def both(line: int) -> Any:
        """A half of this line, and of the fourth after it."""
        one, other = (
            builder.load(pointer_to(builder, addresses[at], offset, narrow), align=2)
            for at in (line, line + 4)
        )
        return shuffled(builder, one, other, list(range(LANES)))

    parts = []
    for first in (0, 8):
        a, b, c, d = (both(first + k) for k in range(4))
        pairs01 = [interleaved(builder, a, b, half, 1) for half in range(2)]
        pairs23 = [interleaved(builder, c, d, half, 1) for half in range(2)]
        parts.append([interleaved(builder, pairs01[i // 2], pairs23[i // 2], i % 2, 2) for i in range(4)])
    # Quarters 0 and 2 of each vector are of the first four pairs, 1 and 3 of the last.
    columns = []
    for quarter in range(2):
        order = [4 * part + i for part in (quarter, 2 + quarter) for i in range(4)]
        order += [LANES + i for i in order]
        columns += [shuffled(builder, parts[0][i], parts[1][i], order) for i in range(4)]
    return columns


def _make_scores(rows: int) -> Any:
    @intrinsic
    def scores_of(
        context: Any, queries: Any, stride: Any, lines: Any, offset: Any, chunks: Any, scores: Any, soon: Any, soon_offset: Any
    ) -> Any:  # fmt: skip
        def make(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            queries, stride, lines, offset, chunks, scores, soon, soon_offset = arguments
            held = [
                [cgutils.alloca_once_value(builder, ir.Constant(FLOATS, None)) for _ in range(_GROUPS)]
                for _ in range(rows)
            ]
            firsts = [builder.add(queries, builder.mul(stride, number(row))) for row in range(rows)]
            with cgutils.for_range_slice(builder, number(0), chunks, number(1), I64) as (i, _):
                place = builder.mul(i, number(LINE))
                at, ahead = builder.add(offset, place), builder.add(soon_offset, place)
                for half in range(2):
                    for group in range(_GROUPS):
                        addresses = [
                            builder.add(builder.load(builder.gep(lines, [number(LANES * group + k)])), at)
                            for k in range(LANES)
                        ]
                        for p, column in enumerate(_columns(builder, addresses, half * LINE // 2)):
                            for row, first in enumerate(firsts):
                                left = pointer_to(
                                    builder, builder.add(first, place), 4 * (half * _HALF + p), I32
                                )
                                pair = spread(builder, builder.load(left, align=2))
                                _multiplied(builder, held[row][group], pair, column)
                        for k in range(LANES // 2):
                            slot = LANES * group + LANES // 2 * half + k
                            fetch(
                                builder, builder.add(builder.load(builder.gep(soon, [number(slot)])), ahead)
                            )
            for row in range(rows):
                for group in range(_GROUPS):
                    place = pointer_to(builder, scores, 4 * (row * BLOCK + LANES * group), FLOATS)
                    builder.store(builder.load(held[row][group]), place, align=4)
            return context.get_dummy_value()

        whole, addresses = types.int64, types.CPointer(types.int64)
        return types.void(whole, whole, addresses, whole, whole, whole, addresses, whole), make

    return scores_of


def _make_values(rows: int, vectors: int) -> Any:
    @intrinsic
    def add_values_of(
        context: Any, weights: Any, lines: Any, offset: Any, pairs: Any, sums: Any, stride: Any, soon: Any, soon_offset: Any
    ) -> Any:  # fmt: skip
        def make(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            weights, lines, offset, pairs, sums, stride, soon, soon_offset = arguments
            firsts = [builder.add(sums, builder.mul(stride, number(row))) for row in range(rows)]
            places = [
                [pointer_to(builder, first, LINE * j, FLOATS) for j in range(vectors)] for first in firsts
            ]
            held = [
                [cgutils.alloca_once_value(builder, builder.load(place, align=4)) for place in of_row]
                for of_row in places
            ]
            numbers = ir.VectorType(ir.IntType(16), 2 * LANES)
            with cgutils.for_range_slice(builder, number(0), pairs, number(1), I64) as (i, _):
                both = builder.mul(i, number(2))

                def line(table: Any, which: int, more: Any) -> Any:
                    address = builder.load(builder.gep(table, [builder.add(both, number(which))]))  # noqa: B023
                    return builder.add(address, more)

                now = [line(lines, which, offset) for which in range(2)]
                ahead = [line(soon, which, soon_offset) for which in range(2)]
                left = builder.add(weights, builder.mul(i, number(4)))
                spreads = [
                    spread(builder, builder.load(pointer_to(builder, left, 2 * BLOCK * row, I32), align=2))
                    for row in range(rows)
                ]
                for j in range(0, vectors, 2):
                    a, b = (
                        builder.load(pointer_to(builder, own, LINE * j // 2, numbers), align=2) for own in now
                    )
                    for half in range(2):
                        column = builder.bitcast(interleaved(builder, a, b, half, 1), PAIRS)
                        for row in range(rows):
                            _multiplied(builder, held[row][j + half], spreads[row], column)
                    for other in ahead:
                        fetch(builder, builder.add(other, number(LINE * j // 2)))
            for row in range(rows):
                for total, place in zip(held[row], places[row], strict=True):
                    builder.store(builder.load(total), place, align=4)
            return context.get_dummy_value()

        whole, addresses = types.int64, types.CPointer(types.int64)
        return types.void(whole, addresses, whole, whole, whole, whole, addresses, whole), make

    return add_values_of


_scores1, _scores2, _scores3, _scores4 = (_make_scores(rows) for rows in range(1, MOST_ROWS + 1))


@kernel
def score_few(rows, queries, wide, lines, key, scores, soon, soon_key):
    """scores [rows, BLOCK] = queries [rows, wide] keys; rows: up to MOST_ROWS. lines: addresses of BLOCK slots, in which the keys lie
    from `key` bytes on; soon, soon_key: of what is scored next, which is fetched meanwhile."""
    chunks = 2 * wide // LINE
    if rows == 1:
        _scores1(queries, 2 * wide, lines, key, chunks, scores, soon, soon_key)
    elif rows == 2:
        _scores2(queries, 2 * wide, lines, key, chunks, scores, soon, soon_key)
    elif rows == 3:
        _scores3(queries, 2 * wide, lines, key, chunks, scores, soon, soon_key)
    else:
        _scores4(queries, 2 * wide, lines, key, chunks, scores, soon, soon_key)


def _make_add_values(vectors: int) -> Any:
    most = _VECTORS[vectors]
    of_rows = [_make_values(rows, vectors) for rows in range(1, most + 1)]
    one, two, three = of_rows[:3]
    four, five, six = of_rows[3:6] if most > 3 else (three,) * 3
    seven, eight = of_rows[6:8] if most > 6 else (six,) * 2

    @kernel
    def add(rows, weights, lines, value, pairs, sums, stride, soon, soon_value):
        if rows == 1:
            one(weights, lines, value, pairs, sums, stride, soon, soon_value)
        elif rows == 2:
            two(weights, lines, value, pairs, sums, stride, soon, soon_value)
        elif rows == 3:
            three(weights, lines, value, pairs, sums, stride, soon, soon_value)
        elif rows == 4:
            four(weights, lines, value, pairs, sums, stride, soon, soon_value)
        elif rows == 5:
            five(weights, lines, value, pairs, sums, stride, soon, soon_value)
        elif rows == 6:
            six(weights, lines, value, pairs, sums, stride, soon, soon_value)
        elif rows == 7:
            seven(weights, lines, value, pairs, sums, stride, soon, soon_value)
        else:
            eight(weights, lines, value, pairs, sums, stride, soon, soon_value)

    return add


_add8, _add4, _add2 = (_make_add_values(vectors) for vectors in (8, 4, 2))
_MOST8, _MOST4 = _VECTORS[8], _VECTORS[4]


@kernel
def add_few_values(rows, weights, count, wide, lines, value, out, soon, soon_value):
    """out [rows, wide] += weights [rows, the first `count` of BLOCK] values; rows: up to MOST_ROWS_OF_VALUES. The rest as for keys."""
    stride, pairs = 4 * wide, count // 2
    i = 0
    while i < wide:
        more = value + 2 * i
        to, soon_more = out + 4 * i, soon_value + 2 * i
        if rows <= _MOST8 and i + 128 <= wide:
            _add8(rows, weights, lines, more, pairs, to, stride, soon, soon_more)
            i += 128
        elif rows <= _MOST4 and i + 64 <= wide:
            _add4(rows, weights, lines, more, pairs, to, stride, soon, soon_more)
            i += 64
        else:
            _add2(rows, weights, lines, more, pairs, to, stride, soon, soon_more)
            i += 32
