"""What of `ops/triton/token_bitmask.py` is compiled ahead of time."""

from __future__ import annotations

from kernels.compile_case import CompileCase
from lightllm.ops.triton.token_bitmask import BLOCK, token_bitmask_kernel

COMPILE_CASES = [
    CompileCase(
        kernel=token_bitmask_kernel,
        label="any vocabulary",
        arguments={
            "logits_ptr": "*fp32:16", "entries_ptr": "*i64:16", "bitmask_ptr": "*i32:16", "stride": "i32:16",
            "bitmask_stride": "i32", "vocab": "i32:16", "words": "i32", "BLOCK": BLOCK,
        },
        launch={"num_warps": 4},
    )
]  # fmt: skip
