"""Does not compile: a block of a size that is no power of two."""

import triton
import triton.language as tl
from kernels.compile_case import CompileCase


@triton.jit
def kernel(out_ptr, BLOCK: tl.constexpr):
    tl.store(out_ptr + tl.arange(0, BLOCK), 0.0)


COMPILE_CASES = [
    CompileCase(
        kernel=kernel, label="broken", arguments={"out_ptr": "*fp32:16", "BLOCK": 100}, architectures=(90,)
    )
]
