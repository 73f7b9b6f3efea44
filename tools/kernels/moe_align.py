"""What of `ops/triton/moe_align.py` is compiled ahead of time."""

from __future__ import annotations

from kernels.compile_case import CompileCase
from lightllm.ops.triton.moe_align import SCAN, count_pairs_kernel, place_pairs_kernel

COMPILE_CASES = [
    CompileCase(
        kernel=count_pairs_kernel,
        label="any",
        arguments={"experts_ptr": "*i32:16", "counts_ptr": "*i32:16", "n": "i32", "SCAN": SCAN},
    ),
    CompileCase(
        kernel=place_pairs_kernel,
        label="256 experts",
        arguments={
            **dict.fromkeys(
                ("experts_ptr", "counts_ptr", "pairs_ptr", "ends_ptr", "block_expert_ptr", "block_start_ptr",
                 "num_blocks_ptr"), "*i32:16"),
            "n": "i32", "EXPERTS": 256, "BLOCK_E": 256, "BLOCK_M": 64, "SCAN": SCAN,
        },
    ),
]  # fmt: skip
