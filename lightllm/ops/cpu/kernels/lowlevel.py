"""What the kernels need of the machine and Python has no word for: pointers, a counter of all threads, exp.

Kernels get addresses as integers. They index flat pointers: a view made inside a loop costs more than what it saves.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

FAST = {"reassoc", "contract", "arcp", "nsz"}
"""Sums may be taken in the order that suits vectors, which is the same in every call. NaN and infinity stay what they are."""

_F32, _I8, _I16, _I32, _I64 = ir.FloatType(), ir.IntType(8), ir.IntType(16), ir.IntType(32), ir.IntType(64)


def kernel(function: Callable[..., Any]) -> Any:
    return njit(fastmath=FAST, error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True)(function)


def _pointer(element: Any, llvm: ir.Type) -> Any:
    @intrinsic
    def pointer(context: Any, address: Any) -> Any:
        def make(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return builder.inttoptr(arguments[0], llvm.as_pointer())

        return types.CPointer(element)(types.int64), make

    return pointer


int8s = _pointer(types.int8, _I8)
int16s = _pointer(types.int16, _I16)
int32s = _pointer(types.int32, _I32)
int64s = _pointer(types.int64, _I64)
floats = _pointer(types.float32, _F32)
uint8s = _pointer(types.uint8, _I8)
uint16s = _pointer(types.uint16, _I16)
uint32s = _pointer(types.uint32, _I32)


@intrinsic
def float_of(context: Any, bits: Any) -> Any:
    """float32 of its bits."""

    def make(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], _F32)

    return types.float32(types.int32), make


@intrinsic
def bits_of(context: Any, number: Any) -> Any:
    """Those of a float32."""

    def make(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], _I32)

    return types.int32(types.float32), make


@intrinsic
def address_of(context: Any, pointer: Any) -> Any:
    def make(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.ptrtoint(arguments[0], _I64)

    return types.int64(pointer), make


def scratch(count: int) -> Any:
    """A function that answers with memory of its caller's for so many float32."""

    @intrinsic
    def scratch_floats(context: Any) -> Any:
        def make(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            memory = cgutils.alloca_once(builder, ir.ArrayType(_F32, count))
            memory.align = 64
            return builder.bitcast(memory, _F32.as_pointer())

        return types.CPointer(types.float32)(), make

    return scratch_floats


@intrinsic
def take_next(context: Any, counter: Any) -> Any:
    """The number at this address, which is one more from then on: no two threads get the same."""

    def make(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        address = builder.inttoptr(arguments[0], _I64.as_pointer())
        return builder.atomic_rmw("add", address, ir.Constant(_I64, 1), "acq_rel")

    return types.int64(types.int64), make


_TAYLOR = tuple(np.float32(math.log(2) ** k / math.factorial(k)) for k in range(6, -1, -1))


@kernel
def exp(x):
    """e ** x for x <= 0, within 4e-7 relative; 2e-38 below -87. Neither branch nor call, so that it is computed in vectors."""
    power = max(x * np.float32(1 / math.log(2)), np.float32(-126.0))
    whole = np.int32(power - np.float32(0.5))
    rest = power - np.float32(whole)
    value = _TAYLOR[0]
    for factor in _TAYLOR[1:]:
        value = value * rest + factor
    return value * float_of((whole + np.int32(127)) << np.int32(23))


@kernel
def plain_nan(x):
    """NaN is one of them all, whatever its bits were."""
    return x if x == x else np.float32(np.nan)


@kernel
def maximum(numbers, start, count):
    """Of `count` numbers, a multiple of 4; NaN is passed over. In four chains, for one would wait for each comparison."""
    a, b, c, d = numbers[start], numbers[start + 1], numbers[start + 2], numbers[start + 3]
    for i in range(start + 4, start + count, 4):
        a, b = max(a, numbers[i]), max(b, numbers[i + 1])
        c, d = max(c, numbers[i + 2]), max(d, numbers[i + 3])
    return max(max(a, b), max(c, d))
