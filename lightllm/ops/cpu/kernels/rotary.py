"""Norm of each query and key head, rotation, and the write into KV slots in one pass, a token at a time: what is read and
written of a token lies side by side.

A head is widened to float32 (and normalised, if there is a norm), then rotated from there to where it goes.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from numba import cfunc, types

from lightllm.ops.cpu.calls import rotary as at
from lightllm.ops.cpu.kernels.lowlevel import (
    FAST,
    address_of,
    float_of,
    int64s,
    kernel,
    plain_nan,
    scratch,
    take_next,
)  # fmt: skip
from lightllm.ops.cpu.kernels.numbers import BY_NAME, FLOAT32, Numbers
from lightllm.ops.cpu.kernels.rms_norm import inverse_root, make_sum_of_squares

load_float32, float32s = FLOAT32.load, FLOAT32.pointer
scratch_head = scratch(at.LARGEST_HEAD)


def make(numbers: Numbers) -> Any:  # long because: functions for one kind of numbers stand in it
    pointer, load, _, store, rounded = numbers
    sum_of_squares = make_sum_of_squares(numbers)

    @kernel
    def widen(x, head, size):
        for i in range(size):
            head[i] = load(x, i)

    @kernel
    def normalise(x, scale, weight, head, size):
        for i in range(size):
            head[i] = rounded(rounded(load(x, i) * scale) * load(weight, i))

    @kernel
    def normalise_once(x, scale, weight, head, size):
        for i in range(size):
            head[i] = rounded(plain_nan(load(x, i) * scale * load_float32(weight, i)))

    @kernel
    def rotate(head, cos, sin, out, half):
        for i in range(half):
            a, b, c, s = head[i], head[half + i], load(cos, i), load(sin, i)
            store(out, i, a * c - b * s)
            store(out, half + i, b * c + a * s)

    @kernel
    def rotate_neighbours(head, cos, sin, out, half):
        for i in range(half):
            a, b, c, s = head[2 * i], head[2 * i + 1], load(cos, i), load(sin, i)
            store(out, 2 * i, a * c - b * s)
            store(out, 2 * i + 1, b * c + a * s)

    @kernel
    def put(call, head, cos, sin, out):
        """The rotated head to where it goes, and the elements that are not rotated."""
        half = call[at.ROTARY_DIM] // 2
        if call[at.INTERLEAVED]:
            rotate_neighbours(head, cos, sin, out, half)
        else:
            rotate(head, cos, sin, out, half)
        for i in range(2 * half, call[at.HEAD_DIM]):
            store(out, i, head[i])

    @kernel
    def fetch(call, x, number, head):
        """The head of this number, widened and normalised."""
        size = call[at.HEAD_DIM]
        if not call[at.WEIGHT]:
            widen(x, head, size)
            return
        scale = inverse_root(sum_of_squares(x, size), size, float_of(np.int32(call[at.EPS])))
        weight = call[at.WEIGHT] + number * call[at.WEIGHT_STRIDE]
        if call[at.WEIGHT_IS_FLOAT32]:
            normalise_once(x, scale, float32s(weight), head, size)
        else:
            normalise(x, scale, pointer(weight), head, size)

    @kernel
    def compute(call, head, token):
        cos = pointer(call[at.COS] + token * call[at.ANGLE_STRIDE])
        sin = pointer(call[at.SIN] + token * call[at.ANGLE_STRIDE])
        slot = call[at.KV] + int64s(call[at.SLOTS])[token] * call[at.KV_STRIDE]
        heads, kv_heads, size = call[at.HEADS], call[at.KV_HEADS], call[at.HEAD_DIM]
        for number in range(heads + kv_heads):
            fetch(
                call,
                pointer(call[at.QK] + token * call[at.QK_STRIDE] + number * call[at.QK_HEAD_STRIDE]),
                number,
                head,
            )
            if number < call[at.KEPT]:
                put(
                    call,
                    head,
                    cos,
                    sin,
                    pointer(call[at.OUT] + token * call[at.OUT_STRIDE] + number * call[at.HEAD_BYTES]),
                )
            if number >= heads:
                put(call, head, cos, sin, pointer(slot + (number - heads) * call[at.HEAD_BYTES]))
        for number in range(kv_heads):
            v = pointer(call[at.V] + token * call[at.V_STRIDE] + number * call[at.V_HEAD_STRIDE])
            out = pointer(slot + (kv_heads + number) * call[at.HEAD_BYTES])
            for i in range(size):
                store(out, i, load(v, i))

    @cfunc(types.void(types.CPointer(types.int64)), fastmath=FAST, error_model="numpy")
    def rotary(call):
        """What each thread runs: blocks of tokens until there are none left."""
        rows, block, counter = call[at.ROWS], call[at.BLOCK], address_of(call) + 8 * at.NEXT
        head = scratch_head()
        while True:
            first = take_next(counter) * block
            if first >= rows:
                return
            for token in range(first, min(first + block, rows)):
                compute(call, head, token)

    return rotary


def kernels() -> dict[str, Callable[[], Any]]:
    return {f"rotary_{name}": partial(make, numbers) for name, numbers in BY_NAME.items()}
