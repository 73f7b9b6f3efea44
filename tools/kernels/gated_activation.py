"""What of `ops/triton/gated_activation.py` is compiled ahead of time and tuned on a GPU."""

from __future__ import annotations

from collections.abc import Callable

import torch

from kernels.compile_case import CompileCase
from kernels.tuning_case import TuningCase, grid
from lightllm.ops.triton.gated_activation import (
    CLAMPED_SWIGLU,
    GELU_ERF,
    GELU_TANH,
    SILU,
    gated_activation_kernel,
    silu_and_mul,
)

COMPILE_CASES = [
    CompileCase(
        kernel=gated_activation_kernel,
        label=f"{label}, {tokens} tokens",
        arguments={
            "gate_up_ptr": "*bf16:16", "out_ptr": "*bf16:16", "stride": "i32:16", "out_stride": "i32:16",
            "size": "i32:16", "limit": "fp32", "alpha": "fp32", "ACTIVATION": activation,
        },
        config="gated_activation",
        sizes={"tokens": tokens},
        short=tokens > 64,
    )
    for label, activation in (
        ("silu", SILU), ("gelu by tanh", GELU_TANH), ("gelu by erf", GELU_ERF), ("clamped SwiGLU", CLAMPED_SWIGLU),
    )
    for tokens in (1, 4096)
]  # fmt: skip


def _problem(tokens: int) -> Callable[[torch.device], Callable[[], object]]:
    def make(device: torch.device) -> Callable[[], object]:
        rows = tokens if device.type == "cuda" else 1
        gate_up = torch.randn(rows, 2 * 14336, device=device).bfloat16()
        return lambda: silu_and_mul(gate_up)

    return make


TUNING_CASES = [
    TuningCase(
        config="gated_activation",
        sizes={"tokens": tokens},
        up_to={"tokens": tokens} if tokens < 4096 else {},
        candidates=grid(BLOCK=(256, 512, 1024, 2048), num_warps=(1, 2, 4, 8)),
        make=_problem(tokens),
    )
    for tokens in (1, 64, 512, 4096)
]
