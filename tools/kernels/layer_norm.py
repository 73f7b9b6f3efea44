"""What of `ops/triton/layer_norm.py` is compiled ahead of time and tuned on a GPU."""

from __future__ import annotations

import functools
from typing import Any

from kernels.norm_cases import row_case, row_tuning
from lightllm.ops.triton.layer_norm import fused_add_layer_norm, layer_norm_kernel

_case = functools.partial(row_case, layer_norm_kernel, "layer_norm")
_BIAS: dict[str, Any] = {"bias_ptr": "*bf16:16", "BIAS": True}
COMPILE_CASES = [
    _case("per head, 128 wide", 128, add=False, heads=40, bias_ptr=None, BIAS=False),
    _case("1024 wide, bias, residual added", 1024, add=True, **_BIAS),
    _case("4096 wide, bias, residual added", 4096, add=True, short=True, **_BIAS),
    _case("14336 wide, bias", 14336, add=False, short=True, **_BIAS),
    _case("14336 wide, bias, residual added", 14336, add=True, **_BIAS),
]
TUNING_CASES = row_tuning(
    "layer_norm", lambda x, residual, weight: fused_add_layer_norm(x, residual, weight, weight, 1e-6)
)
