"""The most likely token of each row: logits are compared as integers of the same order, of which no float32 is made."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from llvmlite import ir
from numba import cfunc, types
from numba.extending import intrinsic

from lightllm.ops.cpu.calls import greedy_tokens as at
from lightllm.ops.cpu.kernels.lowlevel import (
    FAST,
    address_of,
    floats,
    int16s,
    int32s,
    int64s,
    kernel,
    take_next,
)  # fmt: skip

PIECE = 512
"""Logits whose largest is found before it is asked where it stands."""


def _order(integer: Any, width: int, infinity: int) -> Any:
    """infinity: its bits; what lies above is NaN."""
    bits_type = ir.IntType(width)

    @intrinsic
    def order(context: Any, bits: Any) -> Any:
        """Of a logit's bits: larger for a larger logit, the same for 0 and -0, the largest for NaN."""

        def make(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            (bits,) = arguments
            most, zero = ir.Constant(bits_type, (1 << (width - 1)) - 1), ir.Constant(bits_type, 0)
            size = builder.and_(bits, most)
            signed = builder.select(builder.icmp_signed("<", bits, zero), builder.sub(zero, size), size)
            is_nan = builder.icmp_signed(">", size, ir.Constant(bits_type, infinity))
            return builder.select(is_nan, most, signed)

        return integer(integer), make

    return order


@intrinsic
def larger(context: Any, a: Any, b: Any) -> Any:
    """Numba's own makes 64 bits of them."""

    def make(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.select(builder.icmp_signed(">", *arguments), *arguments)

    return a(a, b), make


def make(integer: Any, pointer: Any, width: int, infinity: int) -> Any:
    order, lowest = _order(integer, width, infinity), getattr(np, f"int{width}")(-(1 << (width - 1)))

    @kernel
    def largest(logits, first, last):
        found = lowest
        for i in range(first, last):
            found = larger(found, order(logits[i]))
        return found

    @kernel
    def place(logits, first, last, wanted):
        for i in range(first, last):
            if order(logits[i]) == wanted:
                return i
        return first

    @cfunc(types.void(types.CPointer(types.int64)), fastmath=FAST, error_model="numpy")
    def greedy_tokens(call):
        """What each thread runs: blocks of rows until there are none left."""
        rows, block, size = call[at.ROWS], call[at.BLOCK], call[at.SIZE]
        token_ids, logprobs = int64s(call[at.TOKEN_IDS]), floats(call[at.LOGPROBS])
        counter = address_of(call) + 8 * at.NEXT
        while True:
            first = take_next(counter) * block
            if first >= rows:
                return
            for row in range(first, min(first + block, rows)):
                logits = pointer(call[at.LOGITS] + row * call[at.STRIDE])
                best, where = lowest, np.int64(0)
                for start in range(0, size, PIECE):
                    found = largest(logits, start, min(start + PIECE, size))
                    if found > best:
                        best, where = found, start
                token_ids[row] = place(logits, where, min(where + PIECE, size), best)
                finite = abs(np.int64(best)) < infinity
                logprobs[row] = np.float32(0) if finite else np.float32(np.nan)

    return greedy_tokens


def kernels() -> dict[str, Callable[[], Any]]:
    return {
        "greedy_tokens_bfloat16": partial(make, types.int16, int16s, 16, 0x7F80),
        "greedy_tokens_float16": partial(make, types.int16, int16s, 16, 0x7C00),
        "greedy_tokens_float32": partial(make, types.int32, int32s, 32, 0x7F800000),
    }
