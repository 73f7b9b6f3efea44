"""What of `ops/triton/mla_prefill_attention.py` is compiled ahead of time."""

from __future__ import annotations

from kernels.compile_case import CompileCase
from lightllm.ops.triton.mla_prefill_attention import BLOCK_TOKENS, mla_context_kernel

COMPILE_CASES = [
    CompileCase(
        kernel=mla_context_kernel,
        label="576 wide",
        arguments={
            "kv_ptr": "*bf16:16", "out_ptr": "*bf16:16", "table_ptr": "*i32:16", "rows_ptr": "*i64",
            "start_ptr": "*i32:16", "first_ptr": "*i32:16", "entry_of_ptr": "*i32:16",
            "n": "i32", "kv_stride": "i32:16", "out_stride": "i32:16", "table_stride": "i32:16",
            "WIDTH": 576, "BLOCK_W": 1024, "BLOCK_TOKENS": BLOCK_TOKENS,
        },
        launch={"num_warps": 8},
    ),
]  # fmt: skip
