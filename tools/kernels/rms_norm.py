"""What of `ops/triton/rms_norm.py` is compiled ahead of time and tuned on a GPU."""

from __future__ import annotations

import functools

from kernels.norm_cases import row_case, row_tuning
from lightllm.ops.triton.rms_norm import fused_add_rms_norm, rms_norm_kernel

_case = functools.partial(row_case, rms_norm_kernel, "rms_norm")
COMPILE_CASES = [
    _case("per head, 128 wide", 128, add=False, heads=40, short=True),
    _case("1024 wide, residual added", 1024, add=True),
    _case("4096 wide", 4096, add=False),
    _case("4096 wide, residual added", 4096, add=True, short=True),
    _case("8192 wide, residual added", 8192, add=True, short=True),
    _case("16384 wide, residual added", 16384, add=True, short=True),
    _case("4096 wide, residual added, fp16", 4096, add=True, dtype="fp16"),
    _case("4608 wide, float32 weight", 4608, add=True, weight_ptr="*fp32:16"),
]
TUNING_CASES = row_tuning(
    "rms_norm", lambda x, residual, weight: fused_add_rms_norm(x, residual, weight, 1e-6)
)
