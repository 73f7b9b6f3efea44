"""Codes of weights become numbers in vector registers, which are multiplied there, or kept for many rows.

A step is what is widened at once. It has one or more units: 4 bytes of a row of inputs, a float32 or a pair of bfloat16, and
of each of a panel's outputs the number, or the pair, that they are multiplied with. Numbers are exact; scales come later.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from llvmlite import ir
from numba.core import cgutils

from lightllm.ops.cpu.calls.widened_linear import lanes

LANES = lanes()
VECTORS = 4
WIDTH = VECTORS * LANES
I8, I16, I32, I64, F32 = ir.IntType(8), ir.IntType(16), ir.IntType(32), ir.IntType(64), ir.FloatType()
FLOATS, NUMBERS = ir.VectorType(F32, LANES), ir.VectorType(I32, LANES)
_BYTES, _WORDS, _HALVES = (
    ir.VectorType(I8, 64), ir.VectorType(I16, 2 * LANES), ir.VectorType(ir.HalfType(), 2 * LANES),
)  # fmt: skip
_NIBBLES = 8
"""Codes of 4 bits in 32."""
_E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
_HIGH = tuple((n >> 3) << 7 | 60 + (n & 7) for n in range(16))
"""The upper byte of a bfloat16 for the upper half of a code: its sign, and a bias of 127 instead of 7. The lower byte is the code's
lower half, but for those below, which are smaller than 2**-6 and have no leading 1."""
_SMALL_HIGH = (0, 59, 59, 59, 60, 60, 60, 60) + (60,) * 8
_SMALL_LOW = (0, 0, 128, 192, 0, 32, 64, 96, 128, 144, 160, 176, 192, 208, 224, 240)
"""Both bytes of a bfloat16 for the lower half of a code whose upper half is 0."""


class Widening(NamedTuple):
    nbytes: int
    """Of a step."""
    units: int
    columns: Callable[[Any, Any], list[list[Any]]]
    """(builder, address of a step) -> [units][VECTORS] vectors of LANES times 4 bytes."""


def number(value: int) -> ir.Constant:
    return ir.Constant(I64, value)


def place(builder: Any, address: Any, offset: int, element: ir.Type) -> Any:
    return builder.inttoptr(builder.add(address, number(offset)), element.as_pointer())


def all_of(vector: ir.VectorType, value: float) -> ir.Constant:
    return ir.Constant(vector, [ir.Constant(vector.element, value)] * vector.count)


def _constants(vector: ir.VectorType, values: Any) -> ir.Constant:
    return ir.Constant(vector, [ir.Constant(vector.element, value) for value in values])


def _some(builder: Any, a: Any, b: Any, order: Any) -> Any:
    order = list(order)
    return builder.shuffle_vector(a, b, _constants(ir.VectorType(I32, len(order)), order))


def _called(builder: Any, name: str, result: Any, arguments: list[Any]) -> Any:
    function = ir.FunctionType(result, [argument.type for argument in arguments])
    return builder.call(cgutils.get_or_insert_function(builder.module, function, name), arguments)


def _wide(builder: Any, line: Any) -> list[list[Any]]:
    return [[builder.load(place(builder, line, 4 * LANES * j, FLOATS), align=4) for j in range(VECTORS)]]


def _int8(builder: Any, line: Any) -> list[list[Any]]:
    few, found = ir.VectorType(I8, LANES), []
    for j in range(VECTORS):
        codes = builder.load(place(builder, line, LANES * j, few), align=1)
        found.append(builder.sitofp(builder.sext(codes, NUMBERS), FLOATS))
    return [found]


def _nibbles(widen: Callable[[Any, Any], Any]) -> Callable[[Any, Any], list[list[Any]]]:
    def columns(builder: Any, line: Any) -> list[list[Any]]:
        words = [builder.load(place(builder, line, 4 * LANES * j, NUMBERS), align=1) for j in range(VECTORS)]
        return [
            [widen(builder, builder.lshr(word, all_of(NUMBERS, 4 * k)) if k else word) for word in words]
            for k in range(_NIBBLES)
        ]

    return columns


def _looked_up(builder: Any, codes: Any, table: Any) -> Any:
    """16 numbers by the lower half of 16 codes' lowest bytes."""
    return _called(builder, "llvm.x86.avx512.permvar.sf.512", FLOATS, [_constants(FLOATS, table), codes])


def _int4(builder: Any, codes: Any) -> Any:
    if LANES == 16:
        return _looked_up(builder, codes, range(16))
    return builder.sitofp(builder.and_(codes, all_of(NUMBERS, 15)), FLOATS)


def _e2m1(builder: Any, codes: Any) -> Any:
    if LANES == 16:
        return _looked_up(builder, codes, _E2M1 + tuple(-size for size in _E2M1))
    size = _called(builder, "llvm.x86.avx2.permps", FLOATS, [_constants(FLOATS, _E2M1), codes])
    sign = builder.shl(builder.and_(codes, all_of(NUMBERS, 8)), all_of(NUMBERS, 28))
    return builder.bitcast(builder.or_(builder.bitcast(size, NUMBERS), sign), FLOATS)


def _e4m3(builder: Any, line: Any) -> list[list[Any]]:
    """Moved by a bit, a code has its sign, its exponent and its fraction where a float16 has them."""
    units: list[list[Any]] = [[], []]
    for j in range(0, VECTORS, 2):
        both = builder.load(place(builder, line, 2 * LANES * j, _WORDS), align=1)
        for unit, words in zip(units, (builder.shl(both, all_of(_WORDS, 8)), both), strict=True):
            moved = builder.and_(builder.ashr(words, all_of(_WORDS, 1)), all_of(_WORDS, 0xBF80))
            halves = builder.bitcast(moved, _HALVES)
            for first in (0, LANES):
                half = _some(builder, halves, halves, range(first, first + LANES))
                unit.append(builder.fpext(half, FLOATS))
    return units


def _e4m3_pairs(builder: Any, line: Any) -> list[list[Any]]:
    """Each byte of a bfloat16 by itself, 64 of them at once."""
    words, found = ir.VectorType(I16, 32), []

    def look(table: Any, codes: Any) -> Any:
        function = ir.InlineAsm(ir.FunctionType(_BYTES, [_BYTES, _BYTES]), "vpshufb $2, $1, $0", "=v,v,v")
        return builder.call(function, [_constants(_BYTES, tuple(table) * 4), codes])

    def moved(codes: Any, move: Any, mask: int) -> Any:
        in_words = builder.bitcast(move(builder.bitcast(codes, words), all_of(words, 4)), _BYTES)
        return builder.and_(in_words, all_of(_BYTES, mask))

    for j in range(0, VECTORS, 2):
        codes = builder.load(place(builder, line, 2 * LANES * j, _BYTES), align=1)
        lower = builder.and_(codes, all_of(_BYTES, 0x0F))
        small = builder.icmp_signed("==", builder.and_(codes, all_of(_BYTES, 0x70)), all_of(_BYTES, 0))
        high = look(_HIGH, moved(codes, builder.lshr, 0x0F))
        signed = builder.or_(look(_SMALL_HIGH, lower), builder.and_(codes, all_of(_BYTES, 0x80)))
        high = builder.select(small, signed, high)
        low = builder.select(small, look(_SMALL_LOW, lower), moved(codes, builder.shl, 0xF0))
        for first in (0, 8):
            order: list[int] = []
            for quarter in range(0, 64, 16):
                for i in range(quarter + first, quarter + first + 8):
                    order += [i, 64 + i]
            found.append(builder.bitcast(_some(builder, low, high, order), NUMBERS))
    return [found]


WIDE = Widening(4 * WIDTH, 1, _wide)
"""Units that were widened before."""
OF_FLOATS = {
    "int8": Widening(WIDTH, 1, _int8),
    "int4": Widening(4 * WIDTH, _NIBBLES, _nibbles(_int4)),
    "e2m1": Widening(4 * WIDTH, _NIBBLES, _nibbles(_e2m1)),
    "e4m3": Widening(2 * WIDTH, 2, _e4m3),
}
OF_PAIRS = {"e4m3": Widening(2 * WIDTH, 1, _e4m3_pairs)}
