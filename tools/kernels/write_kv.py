"""What of `ops/triton/write_kv.py` is compiled ahead of time and tuned on a GPU."""

from __future__ import annotations

from collections.abc import Callable

import torch
import triton

from kernels.compile_case import CompileCase
from kernels.tuning_case import TuningCase, grid
from lightllm.ops.kv_layer import KvLayer
from lightllm.ops.triton.write_kv import write_kv, write_kv_kernel

COMPILE_CASES = [
    CompileCase(
        kernel=write_kv_kernel,
        label=f"heads {head_dim} wide",
        arguments={
            "k_ptr": "*bf16:16", "v_ptr": "*bf16:16", "kv_ptr": "*bf16:16", "slots_ptr": "*i64:16",
            "k_stride": "i32:16", "k_head_stride": "i32:16", "v_stride": "i32:16", "v_head_stride": "i32:16",
            "kv_stride": "i32:16", "kv_head_stride": "i32:16",
            "kv_heads": "i32", "head_dim": "i32:16",
            "HEAD_BLOCK": triton.next_power_of_2(head_dim),
        },
        config="write_kv",
        sizes={"head_dim": head_dim},
        short=head_dim == 128,
    )
    for head_dim in (64, 128, 256)
]  # fmt: skip


def _problem(head_dim: int) -> Callable[[torch.device], Callable[[], object]]:
    def make(device: torch.device) -> Callable[[], object]:
        k, v = torch.randn(2, 64, 8, head_dim, device=device).bfloat16().unbind(0)
        kv = KvLayer(torch.zeros(65, 16, head_dim, dtype=torch.bfloat16, device=device), 8)
        slots = torch.randperm(64, device=device)
        return lambda: write_kv(k, v, kv, slots)

    return make


TUNING_CASES = [
    TuningCase(
        config="write_kv",
        sizes={"head_dim": head_dim},
        up_to={"head_dim": head_dim} if head_dim < 256 else {},
        candidates=grid(HEADS=(2, 4, 8), num_warps=(1, 2, 4)),
        make=_problem(head_dim),
    )
    for head_dim in (64, 128, 256)
]
