"""Kernels one after another in one parallel region, as a list says: see `recording.py`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import cfunc, types
from numba.extending import intrinsic

from lightllm.ops.cpu.calls import replay as at
from lightllm.ops.cpu.kernels.lowlevel import FAST, int64s, take_next

_I64 = ir.IntType(64)


@intrinsic
def run(context: Any, function: Any, told: Any) -> Any:
    """Calls the kernel at an address."""

    def make(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer = _I64.as_pointer()
        kernel = builder.inttoptr(arguments[0], ir.FunctionType(ir.VoidType(), [pointer]).as_pointer())
        builder.call(kernel, [builder.inttoptr(arguments[1], pointer)])
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), make


@intrinsic
def wait(context: Any, barrier: Any) -> Any:
    """Calls the function without arguments at an address."""

    def make(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        builder.call(builder.inttoptr(arguments[0], ir.FunctionType(ir.VoidType(), []).as_pointer()), [])
        return context.get_dummy_value()

    return types.void(types.int64), make


def make() -> Any:
    @cfunc(types.void(types.CPointer(types.int64)), fastmath=FAST, error_model="numpy")
    def replay(call):
        """What each thread runs."""
        barrier = call[at.BARRIER]
        for i in range(call[at.NUM_ENTRIES]):
            address = call[at.ENTRIES] + 8 * at.ENTRY_LENGTH * i
            entry = int64s(address)
            if not entry[at.ALONE] or take_next(address + 8 * at.BEGUN) == 0:
                run(entry[at.FUNCTION], entry[at.TOLD])
            if barrier:
                wait(barrier)

    return replay


def kernels() -> dict[str, Callable[[], Any]]:
    return {"replay": make}
