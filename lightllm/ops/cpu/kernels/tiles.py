"""Products of bfloat16 matrices in pieces of 32 x 32, by the matrix unit of Intel's processors (AMX).

A piece are four tiles of 16 x 16 sums, in registers that nothing else here touches. The right-hand matrix lies in pairs: two
numbers that are summed up stand side by side, [n / 2, columns, 2].

Where there are other tiles on the way (torch's products use them too), the configuration of before is put back.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from lightllm.ops.cpu.kernels.lowlevel import kernel

_I64 = ir.IntType(64)


def _instructions(text: str, operands: int) -> Any:
    """A function of as many addresses or strides, which stand for $0, $1, and so on."""

    def make(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        constraints = ["r"] * operands + ["~{memory}", "~{dirflag}", "~{fpsr}", "~{flags}"]
        function = ir.FunctionType(ir.VoidType(), [_I64] * operands)
        builder.call(ir.InlineAsm(function, text, ",".join(constraints), side_effect=True), arguments)
        return context.get_dummy_value()

    signature = types.void(*[types.int64] * operands)

    @intrinsic
    def none(context: Any) -> Any:
        return signature, make

    @intrinsic
    def one(context: Any, a: Any) -> Any:
        return signature, make

    @intrinsic
    def three(context: Any, a: Any, b: Any, c: Any) -> Any:
        return signature, make

    @intrinsic
    def five(context: Any, a: Any, b: Any, c: Any, d: Any, e: Any) -> Any:
        return signature, make

    return {0: none, 1: one, 3: three, 5: five}[operands]


read_configuration = _instructions("sttilecfg ($0)", 1)
configure = _instructions("ldtilecfg ($0)", 1)
release = _instructions("tilerelease", 0)
_zero = _instructions("tilezero %tmm0\ntilezero %tmm1\ntilezero %tmm2\ntilezero %tmm3", 0)
_load = _instructions(
    "tileloadd ($0,$2,1), %tmm0\ntileloadd 64($0,$2,1), %tmm1\ntileloadd ($1,$2,1), %tmm2\ntileloadd 64($1,$2,1), %tmm3", 3
)  # fmt: skip
_store = _instructions(
    "tilestored %tmm0, ($0,$2,1)\ntilestored %tmm1, 64($0,$2,1)\n"
    "tilestored %tmm2, ($1,$2,1)\ntilestored %tmm3, 64($1,$2,1)", 3
)  # fmt: skip
_multiply = _instructions(
    "tileloadd ($0,$2,1), %tmm4\ntileloadd ($3,$4,1), %tmm6\ntdpbf16ps %tmm6, %tmm4, %tmm0\n"
    "tileloadd 64($3,$4,1), %tmm7\ntdpbf16ps %tmm7, %tmm4, %tmm1\n"
    "tileloadd ($1,$2,1), %tmm5\ntdpbf16ps %tmm6, %tmm5, %tmm2\ntdpbf16ps %tmm7, %tmm5, %tmm3", 5
)  # fmt: skip


@kernel
def _add_products(left, left_stride, right, right_stride, count):
    for i in range(count):
        a = left + 64 * i
        _multiply(a, a + 16 * left_stride, left_stride, right + 16 * right_stride * i, right_stride)


@kernel
def product(left, left_stride, right, right_stride, out, out_stride, count):
    """out [32, 32] float32 = left [32, 32 * count] right [32 * count, 32]. Addresses, and bytes from row to row."""
    _zero()
    _add_products(left, left_stride, right, right_stride, count)
    _store(out, out + 16 * out_stride, out_stride)


@kernel
def add_product(left, left_stride, right, right_stride, out, out_stride, count):
    """The same, added to what is there."""
    _load(out, out + 16 * out_stride, out_stride)
    _add_products(left, left_stride, right, right_stride, count)
    _store(out, out + 16 * out_stride, out_stride)
