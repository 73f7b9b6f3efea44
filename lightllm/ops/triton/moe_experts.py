"""Experts on a GPU: two grouped GEMMs over pairs sorted by expert, with the gate's activation between them."""

from __future__ import annotations

from collections.abc import Callable

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from lightllm.ops.packed_experts import StackedExperts
from lightllm.ops.triton.attention_scores import is_float32
from lightllm.ops.triton.launch import cdiv, launch_config, pdl_options
from lightllm.ops.triton.moe_align import AlignedPairs, align_pairs


@triton.jit
def grouped_gemm_kernel(
    x_ptr, weight_ptr, bias_ptr, scale_ptr, out_ptr,
    pairs_ptr, ends_ptr, block_expert_ptr, block_start_ptr, num_blocks_ptr,
    N, K, x_stride, weight_stride, weight_row_stride, out_stride,
    TOP_K: tl.constexpr, GATHER: tl.constexpr, BIAS: tl.constexpr, EXACT: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """GATHER: out[i] = W[e] x[pairs[i] // TOP_K] + bias[e], i a place among the sorted pairs and e its expert; otherwise
    out[pairs[i]] = scale[pairs[i]] * (W[e] x[i] + bias[e]). Grid (bound of the blocks, ceil(N / BLOCK_N)).
    """
    block = tl.program_id(0)
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    if block >= tl.load(num_blocks_ptr):
        return
    expert = tl.load(block_expert_ptr + block).to(tl.int64)
    place = tl.load(block_start_ptr + block) + tl.arange(0, BLOCK_M)
    rows = place < tl.load(ends_ptr + expert)
    pair = tl.load(pairs_ptr + place, mask=rows, other=0)
    source = (pair // TOP_K if GATHER else place).to(tl.int64)
    columns = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    inner = tl.arange(0, BLOCK_K)
    x_rows = x_ptr + source[:, None] * x_stride + inner[None, :]
    weight_rows = (
        weight_ptr
        + expert * weight_stride
        + columns.to(tl.int64)[None, :] * weight_row_stride
        + inner[:, None]
    )
    acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for start in range(0, K, BLOCK_K):
        left = inner < K - start
        x = tl.load(x_rows + start, mask=rows[:, None] & left[None, :], other=0.0)
        weight = tl.load(weight_rows + start, mask=(columns < N)[None, :] & left[:, None], other=0.0)
        acc = tl.dot(x, weight, acc, input_precision="ieee" if EXACT else "tf32")
    if BIAS:
        bias = tl.load(bias_ptr + expert * N + columns, mask=columns < N, other=0.0)
        acc += bias.to(tl.float32)[None, :]
    target = place
    if not GATHER:
        acc *= tl.load(scale_ptr + pair, mask=rows, other=0.0)[:, None]
        target = pair
    out_rows = out_ptr + target.to(tl.int64)[:, None] * out_stride + columns[None, :]
    tl.store(out_rows, acc.to(out_ptr.dtype.element_ty), mask=rows[:, None] & (columns < N)[None, :])


def run_experts(
    x: torch.Tensor,
    weights: torch.Tensor,
    experts: torch.Tensor,
    packed: StackedExperts,
    activation: Callable[[torch.Tensor], torch.Tensor],
) -> torch.Tensor:
    tokens, top_k = experts.shape
    if tokens == 0:
        return torch.empty_like(x)
    count = len(packed.gate_up)
    rows = cdiv(tokens * top_k, count)
    config = launch_config("grouped_gemm", x.device, rows=rows, bytes=x.itemsize)
    aligned = align_pairs(experts, count, config["BLOCK_M"])
    both = gemm(x, packed.gate_up, packed.gate_up_bias, aligned, top_k, None, config)
    results = gemm(activation(both), packed.down, packed.down_bias, aligned, top_k, weights, config)
    return results.view(tokens, top_k, -1).sum(1)


def gemm(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    aligned: AlignedPairs,
    top_k: int,
    scale: torch.Tensor | None,
    config: dict[str, int],
) -> torch.Tensor:
    """weight: [experts, N, K]; scale: of the second GEMM, whose x lies in the order of `aligned`."""
    size = weight.shape[1]
    out = torch.empty((len(aligned.pairs), size), dtype=x.dtype, device=x.device)
    assert x.stride(1) == weight.stride(2) == 1 and (bias is None or bias.is_contiguous())
    grouped_gemm_kernel[(len(aligned.block_expert), cdiv(size, config["BLOCK_N"]))](
        x, weight, bias, scale, out,
        aligned.pairs, aligned.ends, aligned.block_expert, aligned.block_start, aligned.num_blocks,
        size, weight.shape[2], x.stride(0), weight.stride(0), weight.stride(1), out.stride(0),
        TOP_K=top_k, GATHER=scale is None, BIAS=bias is not None, EXACT=is_float32(x),
        **config, **pdl_options(x.device),
    )  # fmt: skip
    return out
