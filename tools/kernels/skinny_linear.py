"""What of `ops/triton/skinny_linear.py` is compiled ahead of time and tuned on a GPU."""

from __future__ import annotations

from collections.abc import Callable

import torch

from kernels.attention_problem import random
from kernels.compile_case import CompileCase
from kernels.tuning_case import TuningCase, grid
from lightllm.ops.triton.skinny_linear import linear_add_, norm_swiglu, skinny_linear_kernel


def _case(label: str, rows: int, dtype: str = "bf16", short: bool = False, **form: bool) -> CompileCase:
    """form: those of NORM, GATED, ADD, BIAS and SPLIT that hold."""
    pointer = f"*{dtype}:16"
    flags = {name: bool(form.get(name)) for name in ("NORM", "GATED", "ADD", "BIAS", "SPLIT")}
    return CompileCase(
        kernel=skinny_linear_kernel,
        label=label,
        arguments={
            "x_ptr": pointer, "weight_ptr": pointer, "bias_ptr": pointer if flags["BIAS"] else None,
            "norm_ptr": pointer if flags["NORM"] else None, "out_ptr": pointer, "sums_ptr": "*fp32:16",
            "squares_ptr": "*fp32:16", "arrived_ptr": "*i32:16", "rows": "i32", "size": "i32:16",
            "inner_size": "i32:16", "steps": "i32", "x_stride": "i32:16", "weight_stride": "i32:16", "out_stride": "i32:16",
            "eps": "fp32", **flags, "BLOCK_M": 16 if rows <= 16 else 32, "EXACT": dtype == "fp32",
        },
        config="skinny_linear",
        sizes={"rows": rows, "bytes": 4 if dtype == "fp32" else 2, "gated": int(flags["GATED"])},
        short=short,
    )  # fmt: skip


COMPILE_CASES = [
    _case("QKV, up to 16 rows, in parts", 16, NORM=True, SPLIT=True, short=True),
    _case("QKV with a bias, up to 32 rows", 32, NORM=True, BIAS=True),
    _case("gate and up, up to 16 rows", 16, NORM=True, GATED=True),
    _case("gate and up, up to 32 rows, in parts", 32, NORM=True, GATED=True, SPLIT=True, short=True),
    _case("O and down, up to 16 rows, in parts", 16, ADD=True, SPLIT=True),
    _case("O and down, up to 32 rows, in parts", 32, ADD=True, SPLIT=True),
    _case("O and down, fp16, up to 32 rows, in parts", 32, "fp16", ADD=True, SPLIT=True),
    _case("float32", 32, "fp32", NORM=True, GATED=True, SPLIT=True),
]


def _problem(size: int, inner: int, gated: bool) -> Callable[[torch.device], Callable[[], object]]:
    """Eight rows, and a weight of Llama-3.1-8B."""

    def make(device: torch.device) -> Callable[[], object]:
        scale = 1 if device.type == "cuda" else 64  # it is only tried out
        weight = random(device, torch.bfloat16, size // scale, inner // scale)
        x, norm = (
            random(device, torch.bfloat16, 8, inner // scale),
            random(device, torch.bfloat16, inner // scale),
        )
        if device.type != "cuda":
            weight, x, norm = (
                weight.float(),
                x.float(),
                norm.float(),
            )  # the interpreter cannot multiply bfloat16
        if gated:
            return lambda: norm_swiglu(x, norm, 1e-5, weight, None)
        out = torch.empty(8, size // scale, dtype=x.dtype, device=device)
        return lambda: linear_add_(x, weight, None, out)

    return make


TUNING_CASES = [
    TuningCase(
        config="skinny_linear",
        sizes={"rows": 8, "bytes": 2, "gated": gated},
        up_to={"bytes": 2, "gated": gated} if not gated else {"bytes": 2},
        make=_problem(28672 if gated else 4096, 4096, bool(gated)),
        candidates=grid(BLOCK_N=(16, 32, 64), BLOCK_K=(64, 128, 256), num_warps=(4, 8), num_stages=(4, 5, 6)),
    )
    for gated in (0, 1)
]
