"""What RMSNorm and LayerNorm share: one program a row, how rows are launched, what is compiled and what is tuned."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import triton

from lightllm.ops.triton.compile_case import CompileCase
from lightllm.ops.triton.launch import launch_config, pdl_options
from lightllm.ops.triton.tuning_case import TuningCase, grid


def with_heads(x: torch.Tensor) -> torch.Tensor:
    """[..., size] as [T, heads, size]."""
    return x if x.dim() == 3 else x.reshape(-1, 1, x.shape[-1])


def launch_rows(
    kernel: Any,
    config: str,
    x: torch.Tensor,
    residual: torch.Tensor | None,
    weight: torch.Tensor,
    out: torch.Tensor,
    eps: float,
    **own: Any,
) -> None:
    """x, out: [T, heads, size]; weight: [size] or [heads, size]; config: the kernel's name in the configuration files;
    own: what else this kernel takes."""
    tokens, heads, size = x.shape
    if tokens == 0:
        return
    assert x.stride(2) == 1 and weight.stride(-1) == 1
    kernel[(tokens * heads,)](
        x_ptr=x, residual_ptr=residual, weight_ptr=weight, out_ptr=out,
        x_stride=x.stride(0), residual_stride=0 if residual is None else residual.stride(0), out_stride=out.stride(0),
        x_head_stride=x.stride(1), out_head_stride=out.stride(1),
        weight_head_stride=weight.stride(0) if weight.dim() == 2 else 0,
        heads=heads, size=size, eps=eps,
        ADD=residual is not None, BLOCK=triton.next_power_of_2(size), **own,
        **launch_config(config, x.device, size=size), **pdl_options(x.device),
    )  # fmt: skip


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
