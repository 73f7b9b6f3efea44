"""Rows of the embedding table: a block of one token's columns a program."""

from __future__ import annotations

from collections.abc import Callable

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from lightllm.ops.triton.compile_case import CompileCase
from lightllm.ops.triton.launch import launch_config, pdl_options
from lightllm.ops.triton.tuning_case import TuningCase, grid


@triton.jit
def embedding_kernel(
    ids_ptr, weight_ptr, out_ptr, first_id, rows, weight_stride, out_stride, size,
    BLOCK: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """out[t] = weight[ids[t] - first_id], zero where that is no row. Grid (T, ceil(size / BLOCK)); a row times the
    stride needs 64 bits."""
    token = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    row = tl.load(ids_ptr + token).to(tl.int64) - first_id
    known = (columns < size) & (row >= 0) & (row < rows)
    values = tl.load(weight_ptr + row * weight_stride + columns, mask=known, other=0.0)
    tl.store(out_ptr + token * out_stride + columns, values.to(out_ptr.dtype.element_ty), mask=columns < size)


def embedding(ids: torch.Tensor, weight: torch.Tensor, first_id: int = 0) -> torch.Tensor:
    out = torch.empty((ids.shape[0], weight.shape[1]), dtype=weight.dtype, device=weight.device)
    if ids.shape[0] == 0:
        return out
    assert ids.stride(0) == 1 and weight.stride(1) == 1
    config = launch_config("embedding", weight.device)
    embedding_kernel[(ids.shape[0], triton.cdiv(weight.shape[1], config["BLOCK"]))](
        ids, weight, out, first_id, weight.shape[0], weight.stride(0), out.stride(0), weight.shape[1],
        **config, **pdl_options(weight.device),
    )  # fmt: skip
    return out


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
