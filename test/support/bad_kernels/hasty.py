"""Lets its successor start early, and does not itself wait for the kernel before it."""

import triton
import triton.language as tl
from kernels.compile_case import CompileCase
from triton.language.extra.cuda import gdc_launch_dependents


@triton.jit
def kernel(x_ptr, out_ptr, BLOCK: tl.constexpr, PDL: tl.constexpr):
    if PDL:
        gdc_launch_dependents()
    columns = tl.arange(0, BLOCK)
    tl.store(out_ptr + columns, tl.load(x_ptr + columns))


COMPILE_CASES = [
    CompileCase(
        kernel=kernel,
        label="no wait",
        arguments={"x_ptr": "*fp32:16", "out_ptr": "*fp32:16", "BLOCK": 128},
        launch={"num_warps": 4},
        architectures=(90,),
    )
]
