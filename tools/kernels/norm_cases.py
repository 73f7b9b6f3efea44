"""Compile and tuning cases that both norms share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import triton

from kernels.compile_case import CompileCase
from kernels.tuning_case import TuningCase, grid


def row_case(
    kernel: Any,
    config: str,
    label: str,
    size: int,
    add: bool,
    heads: int = 1,
    dtype: str = "bf16",
    short: bool = False,
    **own: Any,
) -> CompileCase:
    """add: with the residual addition; own: what else this kernel takes, or other types."""
    pointer = f"*{dtype}:16"
    arguments = {
        "x_ptr": pointer, "residual_ptr": pointer if add else None, "weight_ptr": pointer, "out_ptr": pointer,
        "x_stride": "i32:16", "residual_stride": "i32:16", "out_stride": "i32:16",
        "x_head_stride": "i32:16", "out_head_stride": "i32:16", "weight_head_stride": "i32:16",
        "heads": "i32" if heads > 1 else 1, "size": "i32:16", "eps": "fp32",
        "ADD": add, "BLOCK": triton.next_power_of_2(size),
    }  # fmt: skip
    return CompileCase(
        kernel=kernel,
        label=label,
        arguments=arguments | own,
        config=config,
        sizes={"size": size},
        short=short,
        before_wait="weight and bias",
    )


def row_tuning(
    config: str, fused: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], object]
) -> list[TuningCase]:
    """fused(x, residual, weight): what is measured, 64 rows of bfloat16 (one where it is only tried out)."""

    def problem(size: int) -> Callable[[torch.device], Callable[[], object]]:
        def make(device: torch.device) -> Callable[[], object]:
            rows = 64 if device.type == "cuda" else 1
            x, residual, weight = (torch.randn(n, size, device=device).bfloat16() for n in (rows, rows, 1))
            return lambda: fused(x, residual, weight[0])

        return make

    return [
        TuningCase(
            config=config,
            sizes={"size": size},
            up_to={"size": size} if size < 16384 else {},
            candidates=grid(num_warps=(1, 2, 4, 8, 16, 32)),
            make=problem(size),
        )
        for size in (256, 1024, 2048, 4096, 8192, 16384)
    ]
