"""The numbers of tensors: read as float32, rounded back when they are written.

What `store` writes, nothing else in a kernel writes, nor reads through `load`: the compiler is told so, and makes vectors of
a loop without asking first whether its memory overlaps. What is written and read again is read with `read`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from lightllm.ops.cpu.kernels.lowlevel import floats, uint8s, uint16s

_F16, _F32, _I16, _I32 = ir.HalfType(), ir.FloatType(), ir.IntType(16), ir.IntType(32)
_BIAS = 2.0**120
"""Of float32 127, of E4M3 7."""


class Numbers(NamedTuple):
    """Functions for kernels; pointers are of bits where the numbers have 16."""

    pointer: Any
    """From an address."""
    load: Any
    """(pointer, index) -> float32"""
    read: Any
    """`load` of what may have been stored."""
    store: Any
    """(pointer, index, float32): a NaN is one whose lower half is 0"""
    rounded: Any
    """float32 -> float32, likewise"""


def _widen_bfloat16(builder: Any, bits: Any) -> Any:
    return builder.bitcast(builder.shl(builder.zext(bits, _I32), ir.Constant(_I32, 16)), _F32)


def _narrow_bfloat16(builder: Any, value: Any) -> Any:
    """To the nearest, ties to even. NaN stays NaN if its lower half is 0, as that of a wider bfloat16 is. Not by the processor's
    own instruction: LLVM makes narrower vectors of a loop that has it."""
    bits, half = builder.bitcast(value, _I32), ir.Constant(_I32, 16)
    odd = builder.and_(builder.lshr(bits, half), ir.Constant(_I32, 1))
    nearest = builder.add(builder.add(bits, ir.Constant(_I32, 0x7FFF)), odd)
    return builder.trunc(builder.lshr(nearest, half), _I16)


def _widen_float16(builder: Any, bits: Any) -> Any:
    return builder.fpext(builder.bitcast(bits, _F16), _F32)


def _narrow_float16(builder: Any, value: Any) -> Any:
    return builder.bitcast(builder.fptrunc(value, _F16), _I16)


def _widen_e4m3(builder: Any, bits: Any) -> Any:
    """Sign, exponent and fraction go to their places in a float32. The code for no number becomes 480."""
    wide = builder.sext(bits, _I32)
    moved = builder.and_(builder.shl(wide, ir.Constant(_I32, 20)), ir.Constant(_I32, 0x87F0_0000))
    # With a flag of its own it gets none of the kernel's: a scale times the bias could be infinite.
    return builder.fmul(builder.bitcast(moved, _F32), ir.Constant(_F32, _BIAS), flags=("nsz",))


def _widen_nibble(shift: int) -> Callable[..., Any]:
    """The lower or the upper half of a byte, less 8."""

    def widen(builder: Any, bits: Any) -> Any:
        code = builder.and_(
            builder.lshr(builder.zext(bits, _I32), ir.Constant(_I32, shift)), ir.Constant(_I32, 15)
        )
        return builder.sitofp(builder.sub(code, ir.Constant(_I32, 8)), _F32)

    return widen


def _narrow_no_further(builder: Any, value: Any) -> Any:
    raise NotImplementedError("codes are read, not written")


def _same(builder: Any, value: Any) -> Any:
    return value


def _scope(builder: Any) -> Any:
    """LLVM's name for the memory that `store` writes."""
    module = builder.module
    domain = module.add_metadata([ir.MetaDataString(module, "lightllm")])
    return module.add_metadata([module.add_metadata([ir.MetaDataString(module, "stored"), domain])])


def _numbers(element: Any, pointer: Any, widen: Callable[..., Any], narrow: Callable[..., Any]) -> Numbers:
    @intrinsic
    def load(context: Any, pointer: Any, index: Any) -> Any:
        def make(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            bits = builder.load(builder.gep(arguments[0], [arguments[1]], inbounds=True))
            bits.set_metadata("noalias", _scope(builder))
            return widen(builder, bits)

        return types.float32(types.CPointer(element), types.int64), make

    @intrinsic
    def read(context: Any, pointer: Any, index: Any) -> Any:
        def make(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return widen(builder, builder.load(builder.gep(arguments[0], [arguments[1]], inbounds=True)))

        return types.float32(types.CPointer(element), types.int64), make

    @intrinsic
    def store(context: Any, pointer: Any, index: Any, value: Any) -> Any:
        def make(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            place = builder.gep(arguments[0], [arguments[1]], inbounds=True)
            stored = builder.store(narrow(builder, arguments[2]), place)
            stored.set_metadata("alias.scope", _scope(builder))
            stored.set_metadata("noalias", _scope(builder))
            return context.get_dummy_value()

        return types.void(types.CPointer(element), types.int64, types.float32), make

    @intrinsic
    def rounded(context: Any, value: Any) -> Any:
        def make(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return widen(builder, narrow(builder, arguments[0]))

        return types.float32(types.float32), make

    return Numbers(pointer, load, read, store, rounded)


BFLOAT16 = _numbers(types.uint16, uint16s, _widen_bfloat16, _narrow_bfloat16)
FLOAT16 = _numbers(types.uint16, uint16s, _widen_float16, _narrow_float16)
FLOAT32 = _numbers(types.float32, floats, _same, _same)
LOAD_E4M3, LOAD_LOWER, LOAD_UPPER = (
    _numbers(types.uint8, uint8s, widen, _narrow_no_further).load
    for widen in (_widen_e4m3, _widen_nibble(0), _widen_nibble(4))
)
"""(pointer, index) -> float32, of codes."""
BY_NAME = {"bfloat16": BFLOAT16, "float16": FLOAT16, "float32": FLOAT32}
