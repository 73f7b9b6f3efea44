"""What of `ops/triton/moe_experts.py` is compiled ahead of time and tuned on a GPU."""

from __future__ import annotations

from collections.abc import Callable

import torch

from kernels.compile_case import CompileCase
from kernels.tuning_case import TuningCase, grid
from lightllm.ops.triton.launch import launch_config
from lightllm.ops.triton.moe_align import align_pairs
from lightllm.ops.triton.moe_experts import gemm, grouped_gemm_kernel


def _case(label: str, dtype: str, rows: int, gather: bool, short: bool = False) -> CompileCase:
    pointer = f"*{dtype}:16"
    tables = ("pairs_ptr", "ends_ptr", "block_expert_ptr", "block_start_ptr", "num_blocks_ptr")
    return CompileCase(
        kernel=grouped_gemm_kernel,
        label=label,
        arguments={
            "x_ptr": pointer, "weight_ptr": pointer, "bias_ptr": pointer, "out_ptr": pointer,
            "scale_ptr": None if gather else "*fp32:16", **dict.fromkeys(tables, "*i32:16"),
            "N": "i32:16", "K": "i32:16", "x_stride": "i32:16", "weight_stride": "i64:16",
            "weight_row_stride": "i32:16", "out_stride": "i32:16",
            "TOP_K": 8, "GATHER": gather, "BIAS": True, "EXACT": dtype == "fp32",
        },
        config="grouped_gemm",
        sizes={"rows": rows, "bytes": 4 if dtype == "fp32" else 2},
        short=short,
    )  # fmt: skip


COMPILE_CASES = [
    _case("decode: few rows an expert, gathered", "bf16", 1, True),
    _case("decode: few rows an expert, scattered", "bf16", 1, False, short=True),
    _case("some rows an expert", "bf16", 64, True),
    _case("prefill: many rows an expert, gathered", "bf16", 1024, True, short=True),
    _case("prefill: many rows an expert, scattered", "bf16", 1024, False),
    _case("float32", "fp32", 1024, True),
]


def _problem(rows: int) -> Callable[[torch.device], Callable[[], object]]:
    """Experts of Qwen3-30B-A3B: 8 of 128, 768 wide."""

    def make(device: torch.device) -> Callable[[], object]:
        count, top_k, hidden, width = (128, 8, 2048, 768) if device.type == "cuda" else (4, 2, 64, 32)
        tokens = max(rows * count // top_k, 1) if device.type == "cuda" else 8
        x = torch.randn(tokens, hidden, device=device).bfloat16()
        weight = torch.randn(count, 2 * width, hidden, device=device).bfloat16()
        experts = torch.rand(tokens, count, device=device).topk(top_k, 1).indices.int()

        def launch() -> object:
            config = launch_config("grouped_gemm", device, rows=rows, bytes=2)
            return gemm(x, weight, None, align_pairs(experts, count, config["BLOCK_M"]), top_k, None, config)

        return launch

    return make


TUNING_CASES = [
    TuningCase(
        config="grouped_gemm",
        sizes={"rows": rows, "bytes": 2},
        up_to={"rows": rows, "bytes": 2} if rows < 1024 else {"bytes": 2},
        candidates=grid(
            BLOCK_M=(16,) if rows <= 16 else (32, 64, 128), BLOCK_N=(64, 128), BLOCK_K=(64, 128),
            num_warps=(4, 8), num_stages=(3, 4),
        ),
        make=_problem(rows),
    )
    for rows in (1, 16, 64, 1024)
]  # fmt: skip
