"""What of `ops/triton/penalties.py` is compiled ahead of time."""

from __future__ import annotations

from kernels.compile_case import CompileCase
from lightllm.ops.triton.penalties import BLOCK, PAIRS, grow_end_tokens_kernel, penalties_kernel

COMPILE_CASES = [
    CompileCase(
        kernel=penalties_kernel,
        label="listed tokens",
        arguments={
            "logits_ptr": "*fp32:16", "entries_ptr": "*i64:16", "ids_ptr": "*i64:16", "counts_ptr": "*fp32:16",
            "repetition_ptr": "*fp32:16", "frequency_ptr": "*fp32", "presence_ptr": "*fp32",
            "scratch_ptr": "*fp32:16", "stride": "i32:16", "listed": "i32", "BLOCK": BLOCK,
        },
        launch={"num_warps": 8},
    ),
    CompileCase(
        kernel=grow_end_tokens_kernel,
        label="end tokens",
        arguments={
            "logits_ptr": "*fp32:16", "entries_ptr": "*i64:16", "ids_ptr": "*i64:16", "growth_ptr": "*fp32:16",
            "stride": "i32:16", "pairs": "i32", "BLOCK": PAIRS,
        },
        launch={"num_warps": 4},
    ),
]  # fmt: skip
