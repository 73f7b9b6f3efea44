"""RMSNorm, alone or after the residual addition: each row is summed by one thread, in an order that its length alone decides."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from numba import cfunc, types

from lightllm.ops.cpu.calls import rms_norm as at
from lightllm.ops.cpu.kernels.lowlevel import FAST, address_of, float_of, kernel, plain_nan, take_next
from lightllm.ops.cpu.kernels.numbers import BY_NAME, FLOAT32, Numbers

load_float32, float32s = FLOAT32.load, FLOAT32.pointer


def make_sum_of_squares(numbers: Numbers) -> Any:
    load = numbers.load

    @kernel
    def sum_of_squares(x, size):
        total = np.float32(0)
        for i in range(size):
            value = load(x, i)
            total += value * value
        return total

    return sum_of_squares


@kernel
def inverse_root(squares, size, eps):
    """1 / sqrt(mean + eps)"""
    return np.float32(1) / np.sqrt(squares / np.float32(size) + eps)


def make(numbers: Numbers) -> Any:
    pointer, load, read, store, rounded = numbers
    sum_of_squares = make_sum_of_squares(numbers)

    @kernel
    def add(x, residual, size):
        """residual += x; returns the sum of its squares."""
        total = np.float32(0)
        for i in range(size):
            value = rounded(load(residual, i) + load(x, i))
            store(residual, i, value)
            total += value * value
        return total

    @kernel
    def scale_rounded(x, scale, weight, out, size):
        for i in range(size):
            store(out, i, rounded(read(x, i) * scale) * load(weight, i))

    @kernel
    def scale_once(x, scale, weight, out, size):
        for i in range(size):
            store(out, i, plain_nan(read(x, i) * scale * load_float32(weight, i)))

    @cfunc(types.void(types.CPointer(types.int64)), fastmath=FAST, error_model="numpy")
    def rms_norm(call):
        """What each thread runs: blocks of rows until there are none left."""
        rows, block, size, heads = call[at.ROWS], call[at.BLOCK], call[at.SIZE], call[at.HEADS]
        eps, counter = float_of(np.int32(call[at.EPS])), address_of(call) + 8 * at.NEXT
        while True:
            first = take_next(counter) * block
            if first >= rows:
                return
            for row in range(first, min(first + block, rows)):
                token = row // heads
                head = row - token * heads
                x = pointer(call[at.X] + token * call[at.X_STRIDE] + head * call[at.X_HEAD_STRIDE])
                out = pointer(call[at.OUT] + row * call[at.OUT_STRIDE])
                weight = call[at.WEIGHT] + head * call[at.WEIGHT_STRIDE]
                if call[at.RESIDUAL]:
                    residual = pointer(call[at.RESIDUAL] + row * call[at.RESIDUAL_STRIDE])
                    total = add(x, residual, size)
                    x = residual
                else:
                    total = sum_of_squares(x, size)
                scale = inverse_root(total, size, eps)
                if call[at.WEIGHT_IS_FLOAT32]:
                    scale_once(x, scale, float32s(weight), out, size)
                else:
                    scale_rounded(x, scale, pointer(weight), out, size)

    return rms_norm


def kernels() -> dict[str, Callable[[], Any]]:
    return {f"rms_norm_{name}": partial(make, numbers) for name, numbers in BY_NAME.items()}
