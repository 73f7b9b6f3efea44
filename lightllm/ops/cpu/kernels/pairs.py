"""Products of bfloat16 matrices whose sums stay in registers, with the instruction that multiplies pairs (AVX512-BF16).

The right-hand matrix lies in pairs: two numbers that are summed up stand side by side, [n / 2, columns, 2]. Each sum is one
chain over the pairs in their order.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from lightllm.ops.cpu.kernels.lowlevel import kernel
from lightllm.ops.cpu.kernels.vectors import spread

LANES = 16
"""float32 of a vector, and pairs."""
LINE = 64
"""Bytes of memory that come together."""
I32, I64 = ir.IntType(32), ir.IntType(64)
FLOATS, PAIRS = ir.VectorType(ir.FloatType(), LANES), ir.VectorType(I32, LANES)
_HALVES = ir.VectorType(ir.IntType(16), LANES)


class Instruction(NamedTuple):
    """Multiplies numbers that stand side by side in 32 bits, and adds the products to a sum."""

    text: str
    """$0: the sums, $2: of the left-hand matrix, $3: of the right-hand one."""
    sums: ir.Type


PAIRS_OF_BFLOAT16 = Instruction("vdpbf16ps $3, $2, $0", FLOATS)


def number(value: int) -> ir.Constant:
    return ir.Constant(I64, value)


def pointer_to(builder: Any, address: Any, offset: int, element: ir.Type) -> Any:
    return builder.inttoptr(builder.add(address, number(offset)), element.as_pointer())


def fetch(builder: Any, address: Any) -> None:
    """Asks for a line of memory, see `fetch_ahead`."""
    function = ir.FunctionType(ir.VoidType(), [I64])
    builder.call(ir.InlineAsm(function, "prefetcht1 ($0)", "r", side_effect=True), [address])


def _make_product(
    rows: int, vectors: int, add: bool, fetched: int, rounded: bool, instruction: Instruction
) -> Any:
    """sums [rows, 16 * vectors] = left [rows, 2 * pairs] right [pairs, 16 * vectors, 2], with `add` more than `base` by it. All at
    addresses, with bytes from row to row. fetched: lines of `soon` that are asked for with each pair; rounded: sums are bfloat16."""
    shape = [(row, j) for row in range(rows) for j in range(vectors)]
    sums_type = instruction.sums
    multiplying = ir.InlineAsm(
        ir.FunctionType(sums_type, [sums_type, PAIRS, PAIRS]), instruction.text, "=v,0,v,v"
    )

    @intrinsic
    def product(
        context: Any, left: Any, left_stride: Any, right: Any, right_stride: Any, pairs: Any, sums: Any, sums_stride: Any,
        base: Any, base_stride: Any, soon: Any,
    ) -> Any:  # fmt: skip
        def make(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            left, left_stride, right, right_stride, pairs, sums, sums_stride, base, base_stride, soon = (
                arguments
            )

            def places(first: Any, stride: Any, size: int, vector: Any) -> list[Any]:
                lines = [builder.add(first, builder.mul(stride, number(row))) for row in range(rows)]
                return [pointer_to(builder, lines[row], size * LANES * j, vector) for row, j in shape]

            if add:
                begins = [builder.load(place, align=4) for place in places(base, base_stride, 4, sums_type)]
            else:
                begins = [ir.Constant(sums_type, None)] * len(shape)
            held = [cgutils.alloca_once_value(builder, begin) for begin in begins]
            firsts = [builder.add(left, builder.mul(left_stride, number(row))) for row in range(rows)]
            with cgutils.for_range_slice(builder, number(0), pairs, number(1), I64) as (i, _):
                line = builder.add(right, builder.mul(i, right_stride))
                columns = [
                    builder.load(pointer_to(builder, line, 4 * LANES * j, PAIRS), align=4)
                    for j in range(vectors)
                ]
                for k in range(fetched):
                    place = builder.mul(builder.add(builder.mul(i, number(fetched)), number(k)), number(LINE))
                    fetch(builder, builder.add(soon, place))
                offset = builder.mul(i, number(4))
                for row, first in enumerate(firsts):
                    pair = builder.load(pointer_to(builder, builder.add(first, offset), 0, I32), align=2)
                    pair = spread(builder, pair)
                    for j, column in enumerate(columns):
                        total = held[row * vectors + j]
                        builder.store(builder.call(multiplying, [builder.load(total), pair, column]), total)
            size, vector = (2, _HALVES) if rounded else (4, sums_type)
            for total, place in zip(held, places(sums, sums_stride, size, vector), strict=True):
                value = builder.load(total)
                builder.store(_rounded(builder, value) if rounded else value, place, align=size)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 10), make

    return product


def _rounded(builder: Any, value: Any) -> Any:
    narrowing = ir.InlineAsm(ir.FunctionType(_HALVES, [FLOATS]), "vcvtneps2bf16 $1, $0", "=v,v")
    return builder.call(narrowing, [value])


@intrinsic
def round_vector(context: Any, numbers: Any, out: Any) -> Any:
    """LANES float32 at one address become bfloat16 at another."""

    def make(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        value = builder.load(pointer_to(builder, arguments[0], 0, FLOATS), align=4)
        builder.store(_rounded(builder, value), pointer_to(builder, arguments[1], 0, _HALVES), align=2)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), make


_ROWS = 6
"""With four vectors each, all sums are in registers: there are 32, and columns and one of the left-hand side need 5."""


def make_product(
    vectors: int,
    add: bool,
    fetched: int = 0,
    rounded: bool = False,
    instruction: Instruction = PAIRS_OF_BFLOAT16,
) -> Any:
    """The product of any number of rows with 16 * vectors columns, at most 64.

    base: what is added to, the sums themselves or others; nothing reads it without `add`. fetched: lines that are asked for with
    each pair: as many as `right` has, in order, from `soon` on. rounded: sums are bfloat16.
    """
    one, two, three, four, five, six = (
        _make_product(rows, vectors, add, fetched, rounded, instruction) for rows in range(1, _ROWS + 1)
    )

    @kernel
    def product(
        rows, left, left_stride, right, right_stride, pairs, sums, sums_stride, base, base_stride, soon
    ):
        done, blocks = 0, -(-rows // _ROWS)
        for block in range(blocks):
            taken = (rows - done) // (blocks - block)
            a, to, more = left + done * left_stride, sums + done * sums_stride, base + done * base_stride
            ahead = soon + min(block * fetched, vectors - fetched) * LINE * pairs
            if taken == 6:
                six(a, left_stride, right, right_stride, pairs, to, sums_stride, more, base_stride, ahead)
            elif taken == 5:
                five(a, left_stride, right, right_stride, pairs, to, sums_stride, more, base_stride, ahead)
            elif taken == 4:
                four(a, left_stride, right, right_stride, pairs, to, sums_stride, more, base_stride, ahead)
            elif taken == 3:
                three(a, left_stride, right, right_stride, pairs, to, sums_stride, more, base_stride, ahead)
            elif taken == 2:
                two(a, left_stride, right, right_stride, pairs, to, sums_stride, more, base_stride, ahead)
            else:
                one(a, left_stride, right, right_stride, pairs, to, sums_stride, more, base_stride, ahead)
            done += taken

    return product


def make_transpose(flipped: int = 0) -> Any:
    """flipped: bits of each pair that are turned over on the way."""

    @intrinsic
    def transpose(context: Any, lines: Any, offset: Any, out: Any, out_stride: Any) -> Any:
        """out [16, 16]: pairs of LANES lines, whose addresses `lines` has, side by side. offset, out_stride: bytes.

        Four pairs of four lines at a time: vectors are put together of quarters, which takes no shuffling, and then transposed
        within their quarters.
        """

        def make(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            lines, offset, out, out_stride = arguments
            quarter = ir.VectorType(I32, 4)
            addresses = [
                builder.add(builder.load(builder.gep(lines, [number(i)])), offset) for i in range(LANES)
            ]

            for first in range(0, LANES, 4):
                vectors = []
                for k in range(4):
                    quarters = [
                        builder.load(
                            pointer_to(builder, addresses[4 * lane + k], 4 * first, quarter), align=2
                        )
                        for lane in range(4)
                    ]
                    halves = [_joined(builder, *quarters[:2]), _joined(builder, *quarters[2:])]
                    vectors.append(_joined(builder, *halves))
                a, b, c, d = vectors
                pairs01 = [interleaved(builder, a, b, half, 1) for half in range(2)]
                pairs23 = [interleaved(builder, c, d, half, 1) for half in range(2)]
                for i in range(4):
                    column = interleaved(builder, pairs01[i // 2], pairs23[i // 2], i % 2, 2)
                    if flipped:
                        column = builder.xor(column, ir.Constant(PAIRS, [flipped] * LANES))
                    place = builder.add(out, builder.mul(out_stride, number(first + i)))
                    builder.store(column, pointer_to(builder, place, 0, PAIRS), align=4)
            return context.get_dummy_value()

        return types.void(types.CPointer(types.int64), types.int64, types.int64, types.int64), make

    return transpose


transpose_pairs = make_transpose()


def shuffled(builder: Any, a: Any, b: Any, order: list[int]) -> Any:
    """Elements of a, and of b behind them, in this order."""
    mask = ir.Constant(ir.VectorType(I32, len(order)), [ir.Constant(I32, i) for i in order])
    return builder.shuffle_vector(a, b, mask)


def _joined(builder: Any, a: Any, b: Any) -> Any:
    return shuffled(builder, a, b, list(range(2 * a.type.count)))


def interleaved(builder: Any, a: Any, b: Any, half: int, unit: int) -> Any:
    """Within each quarter of the vectors: units of so many elements of the lower or upper half of a's and of b's in turn."""
    count = a.type.count
    width = count // 4
    order = []
    for quarter in range(0, count, width):
        begin = quarter + half * width // 2
        for i in range(begin, begin + width // 2, unit):
            order += [*range(i, i + unit), *range(count + i, count + i + unit)]
    return shuffled(builder, a, b, order)


@intrinsic
def fetch_ahead(context: Any, address: Any) -> Any:
    """Asks for a line of memory that will be read soon, into the second cache: in the first one, lines that are a power of two apart
    would drive each other out. Any address will do."""

    def make(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        fetch(builder, arguments[0])
        return context.get_dummy_value()

    return types.void(types.int64), make


@intrinsic
def pair_up(context: Any, one: Any, other: Any, out: Any) -> Any:
    """32 bfloat16 of two addresses become 32 pairs at a third, in the order of `paired_place`: that of the cheapest instruction."""

    def make(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        numbers = ir.VectorType(ir.IntType(16), 2 * LANES)
        a, b = (builder.load(pointer_to(builder, address, 0, numbers), align=2) for address in arguments[:2])
        for half in range(2):
            place = pointer_to(builder, arguments[2], 4 * LANES * half, numbers)
            builder.store(interleaved(builder, a, b, half, 1), place, align=2)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), make


@kernel
def paired_place(i):
    """Where number i is among the pairs."""
    return i // 32 * 32 + i % 8 // 4 * 16 + i % 32 // 8 * 4 + i % 4
