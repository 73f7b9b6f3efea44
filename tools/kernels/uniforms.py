"""What of `ops/triton/uniforms.py` is compiled ahead of time."""

from __future__ import annotations

from kernels.compile_case import CompileCase
from lightllm.ops.triton.uniforms import BLOCK, uniforms_kernel

COMPILE_CASES = [
    CompileCase(
        kernel=uniforms_kernel,
        label="any number of rows",
        arguments={
            "seeds_ptr": "*i64:16", "choices_ptr": "*i64:16", "positions_ptr": "*i64:16", "out_ptr": "*fp64:16",
            "count": "i32", "BLOCK": BLOCK,
        },
        launch={"num_warps": 4},
    )
]  # fmt: skip
