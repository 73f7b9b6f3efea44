"""Needs more registers than a thread has."""

import triton
import triton.language as tl
from kernels.compile_case import CompileCase


@triton.jit
def kernel(x_ptr, out_ptr, BLOCK: tl.constexpr):
    columns = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + columns)
    total = tl.cumsum(x, 0)
    tl.store(out_ptr + columns, x - total / tl.sum(x, 0))


COMPILE_CASES = [
    CompileCase(
        kernel=kernel,
        label="one warp for 8192 elements",
        arguments={"x_ptr": "*fp32:16", "out_ptr": "*fp32:16", "BLOCK": 8192},
        launch={"num_warps": 1},
        architectures=(90,),
    )
]
