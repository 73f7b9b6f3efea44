"""Wants more shared memory than an sm_89 block has."""

import triton
import triton.language as tl
from kernels.compile_case import CompileCase


@triton.jit
def kernel(a_ptr, b_ptr, out_ptr, steps, SIZE: tl.constexpr, DEPTH: tl.constexpr):
    rows, inner = tl.arange(0, SIZE), tl.arange(0, DEPTH)
    total = tl.zeros((SIZE, SIZE), tl.float32)
    for _ in range(steps):
        a = tl.load(a_ptr + rows[:, None] * DEPTH + inner[None, :])
        b = tl.load(b_ptr + inner[:, None] * SIZE + rows[None, :])
        total = tl.dot(a, b, total)
        a_ptr += SIZE * DEPTH
        b_ptr += SIZE * DEPTH
    tl.store(out_ptr + rows[:, None] * SIZE + rows[None, :], total)


COMPILE_CASES = [
    CompileCase(
        kernel=kernel,
        label="eight stages of 32 KiB",
        arguments={
            "a_ptr": "*fp16:16", "b_ptr": "*fp16:16", "out_ptr": "*fp32:16", "steps": "i32",
            "SIZE": 128, "DEPTH": 64,
        },
        launch={"num_warps": 8, "num_stages": 8},
        architectures=(89,),
    )
]  # fmt: skip
