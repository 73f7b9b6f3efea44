"""What of `ops/triton/write_codes.py` is compiled ahead of time; it is launched as `write_kv` is."""

from __future__ import annotations

import triton

from kernels.compile_case import CompileCase
from lightllm.ops.triton.write_codes import write_codes_kernel

COMPILE_CASES = [
    CompileCase(
        kernel=write_codes_kernel,
        label=f"heads {head_dim} wide",
        arguments={
            "k_ptr": "*bf16:16", "v_ptr": "*bf16:16", "kv_ptr": "*i8:16", "scales_ptr": "*bf16:16", "slots_ptr": "*i64:16",
            "k_stride": "i32:16", "k_head_stride": "i32:16", "v_stride": "i32:16", "v_head_stride": "i32:16",
            "kv_stride": "i32:16", "kv_head_stride": "i32:16", "scale_stride": "i32:16",
            "kv_heads": "i32", "head_dim": "i32:16", "largest": "fp32",
            "HEAD_BLOCK": triton.next_power_of_2(head_dim),
        },
        config="write_kv",
        sizes={"head_dim": head_dim},
        short=head_dim == 128,
    )
    for head_dim in (64, 128, 256)
]  # fmt: skip
