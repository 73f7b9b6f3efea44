"""What of `ops/triton/embedding.py` is compiled ahead of time and tuned on a GPU."""

from __future__ import annotations

from collections.abc import Callable

import torch

from kernels.compile_case import CompileCase
from kernels.tuning_case import TuningCase, grid
from lightllm.ops.triton.embedding import embedding, embedding_kernel

COMPILE_CASES = [
    CompileCase(
        kernel=embedding_kernel,
        label="bf16",
        arguments={
            "ids_ptr": "*i64:16", "weight_ptr": "*bf16:16", "out_ptr": "*bf16:16", "first_id": "i32:16",
            "rows": "i32:16", "weight_stride": "i32:16", "out_stride": "i32:16", "size": "i32:16",
        },
        config="embedding",
    )
]  # fmt: skip


def _problem(device: torch.device) -> Callable[[], object]:
    weight = torch.randn(32000, 4096, device=device).bfloat16()
    ids = torch.randint(0, 32000, (64 if device.type == "cuda" else 1,), device=device)
    return lambda: embedding(ids, weight)


TUNING_CASES = [
    TuningCase(
        config="embedding",
        sizes={},
        up_to={},
        candidates=grid(BLOCK=(512, 1024, 2048, 4096), num_warps=(1, 2, 4, 8)),
        make=_problem,
    )
]
