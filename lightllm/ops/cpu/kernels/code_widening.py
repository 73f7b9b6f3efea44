"""Keys and values in E4M3 or 4 bits become bfloat16, a block of a head at a time: what attention in blocks reads then."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from lightllm.ops.cpu.calls import block_attention as at
from lightllm.ops.cpu.calls.block_attention import BLOCK
from lightllm.ops.cpu.kernels import pairs
from lightllm.ops.cpu.kernels.lowlevel import address_of, int64s, kernel, uint8s, uint16s
from lightllm.ops.cpu.kernels.numbers import BFLOAT16, LOAD_E4M3, LOAD_LOWER, LOAD_UPPER
from lightllm.ops.cpu.kernels.vectors import WIDTH, all_lanes, spread

_load, _store = BFLOAT16.load, BFLOAT16.store
_load_e4m3, _load_lower, _load_upper = LOAD_E4M3, LOAD_LOWER, LOAD_UPPER
_I32, _I64 = ir.IntType(32), ir.IntType(64)
_FLOATS, _NUMBERS = ir.VectorType(ir.FloatType(), WIDTH), ir.VectorType(_I32, WIDTH)
_BYTES, _HALVES = ir.VectorType(ir.IntType(8), WIDTH), ir.VectorType(ir.IntType(16), WIDTH)
_BIAS = 2.0**120


def _all(value: int) -> ir.Constant:
    return ir.Constant(_NUMBERS, [ir.Constant(_I32, value)] * WIDTH)


def _e4m3(builder: Any, codes: Any, scale: Any) -> Any:
    """As `LOAD_E4M3`."""
    moved = builder.and_(builder.shl(builder.sext(codes, _NUMBERS), _all(20)), _all(0x87F0_0000))
    number = builder.fmul(builder.bitcast(moved, _FLOATS), all_lanes(_BIAS), flags=("nsz",))
    return builder.fmul(number, scale)


def _nibble(shift: int) -> Any:
    def widen(builder: Any, codes: Any, scale: Any) -> Any:
        """Looked up by the lower 4 bits of each, in a register of what they stand for."""
        stands_for = ir.Constant(
            _FLOATS, [ir.Constant(ir.FloatType(), float(code - 8)) for code in range(16)]
        )
        wide = builder.zext(codes, _NUMBERS)
        wide = builder.lshr(wide, _all(shift)) if shift else wide
        function = ir.FunctionType(_FLOATS, [_FLOATS, _NUMBERS])
        look = cgutils.get_or_insert_function(builder.module, function, "llvm.x86.avx512.permvar.sf.512")
        return builder.call(look, [builder.fmul(stands_for, scale), wide])

    return widen


def _make(widen: Any) -> Any:
    @intrinsic
    def widen_some(context: Any, codes: Any, scale: Any, count: Any, to: Any) -> Any:
        """`count` codes at an address, a multiple of WIDTH, times a scale, become bfloat16 at another."""

        def make(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            codes, scale, count, to = arguments
            factor, step = spread(builder, scale), ir.Constant(_I64, WIDTH)
            narrowing = ir.InlineAsm(ir.FunctionType(_HALVES, [_FLOATS]), "vcvtneps2bf16 $1, $0", "=v,v")
            with cgutils.for_range_slice(builder, ir.Constant(_I64, 0), count, step, _I64) as (i, _):
                some = builder.load(pairs.pointer_to(builder, builder.add(codes, i), 0, _BYTES), align=1)
                halves = builder.call(narrowing, [widen(builder, some, factor)])
                place = builder.add(to, builder.mul(i, ir.Constant(_I64, 2)))
                builder.store(halves, pairs.pointer_to(builder, place, 0, _HALVES), align=2)
            return context.get_dummy_value()

        return types.void(types.int64, types.float32, types.int64, types.int64), make

    return widen_some


_some_e4m3, _some_lower, _some_upper = _make(_e4m3), _make(_nibble(0)), _make(_nibble(4))


@kernel
def widen(code, scales, element, groups, head_dim, to):
    """A head's codes at an address become bfloat16 at `to`, each the nearest to its number times its group's scale."""
    size, half = head_dim // groups, head_dim // 2
    factors = uint16s(scales)
    for group in range(groups):
        scale, begin, end = _load(factors, group), group * size, (group + 1) * size
        if element == at.E4M3:
            _some_e4m3(code + begin, scale, size, to + 2 * begin)
        else:
            if begin < half:
                _some_lower(code + begin, scale, min(end, half) - begin, to + 2 * begin)
            if end > half:
                first = max(begin, half)
                _some_upper(code + first - half, scale, end - first, to + 2 * first)


@kernel
def widen_singly(code, scales, element, groups, head_dim, to):
    """The same of groups, or half heads, that are no multiples of WIDTH."""
    size, half = head_dim // groups, head_dim // 2
    codes, out, factors = uint8s(code), uint16s(to), uint16s(scales)
    for group in range(groups):
        scale, begin, end = _load(factors, group), group * size, (group + 1) * size
        if element == at.E4M3:
            for i in range(begin, end):
                _store(out, i, _load_e4m3(codes, i) * scale)
        else:
            for i in range(begin, min(end, half)):
                _store(out, i, _load_lower(codes, i) * scale)
            for i in range(max(begin, half), end):
                _store(out, i, _load_upper(codes, i - half) * scale)


@kernel
def widen_block(call, lines, head, count, soon, soon_head, wide, copies):
    """A head of a block of codes: bfloat16 [count, wide] behind the addresses of each. lines: of each slot, and BLOCK * 3 further on of its
    scales. What is widened next is fetched meanwhile."""
    size, scale_at, head_dim = call[at.HEAD_BYTES], 2 * head * call[at.GROUPS], call[at.HEAD_DIM]
    element, groups = call[at.ELEMENT], call[at.GROUPS]
    whole = head_dim % (2 * WIDTH) == 0 and head_dim // groups % WIDTH == 0
    addresses, scales = int64s(copies), int64s(address_of(lines) + 8 * 3 * BLOCK)
    for j in range(count):
        addresses[j] = copies + 8 * BLOCK + 2 * wide * j
        if whole:
            widen(lines[j] + head * size, scales[j] + scale_at, element, groups, head_dim, addresses[j])
        else:
            widen_singly(
                lines[j] + head * size, scales[j] + scale_at, element, groups, head_dim, addresses[j]
            )
        for i in range(0, size, 64):
            pairs.fetch_ahead(soon[j] + soon_head * size + i)
    return addresses
