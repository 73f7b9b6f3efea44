"""act(gate) * up for the gates of SwiGLU and GeGLU, rounded once."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from numba import cfunc, types

from lightllm.ops.cpu.calls import gated_activation as at
from lightllm.ops.cpu.kernels.lowlevel import FAST, address_of, exp, kernel, take_next
from lightllm.ops.cpu.kernels.numbers import BY_NAME, Numbers


@kernel
def times_sigmoid(x, t):
    """x / (1 + e ** -t), without e ** of anything above 0."""
    e = exp(-abs(t))
    part = np.float32(1) if t >= np.float32(0) else (e if t > np.float32(-87) else np.float32(0))
    return x * part / (np.float32(1) + e)


def make(numbers: Numbers) -> Any:
    pointer, load, _, store, _ = numbers

    @kernel
    def silu(gate, up, out, size):
        for i in range(size):
            x = load(gate, i)
            store(out, i, times_sigmoid(x, x) * load(up, i))

    @kernel
    def gelu_tanh(gate, up, out, size):
        """0.5 x (1 + tanh u) = x sigmoid(2 u), u = sqrt(2 / pi) (x + 0.044715 x³)"""
        for i in range(size):
            x = load(gate, i)
            t = np.float32(1.5957691216057308) * (x + np.float32(0.044715) * x * x * x)
            store(out, i, times_sigmoid(x, t) * load(up, i))

    @cfunc(types.void(types.CPointer(types.int64)), fastmath=FAST, error_model="numpy")
    def gated_activation(call):
        """What each thread runs: blocks of rows until there are none left."""
        rows, block, size = call[at.ROWS], call[at.BLOCK], call[at.SIZE]
        counter = address_of(call) + 8 * at.NEXT
        while True:
            first = take_next(counter) * block
            if first >= rows:
                return
            for row in range(first, min(first + block, rows)):
                gate = call[at.GATE_UP] + row * call[at.STRIDE]
                up, out = pointer(gate + call[at.UP]), pointer(call[at.OUT] + row * call[at.OUT_STRIDE])
                if call[at.ACTIVATION] == at.SILU:
                    silu(pointer(gate), up, out, size)
                else:
                    gelu_tanh(pointer(gate), up, out, size)

    return gated_activation


def kernels() -> dict[str, Callable[[], Any]]:
    return {f"gated_activation_{name}": partial(make, numbers) for name, numbers in BY_NAME.items()}
