"""Rows of the embedding table: a block of one token's columns a program."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from lightllm.ops.triton.launch import cdiv, launch_config, pdl_options


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
    embedding_kernel[(ids.shape[0], cdiv(weight.shape[1], config["BLOCK"]))](
        ids, weight, out, first_id, weight.shape[0], weight.stride(0), out.stride(0), weight.shape[1],
        **config, **pdl_options(weight.device),
    )  # fmt: skip
    return out
