"""Linear layers for few rows, with what stands before and behind them: norm in, SwiGLU or residual addition out.

Reading the weight is all the time that it takes, so a weight's rows are cut along their length too (split-K) until all
multiprocessors read. The last part of a tile to finish adds all of them up, in their order. With dependent launch a program
asks for its first weights (into the L2 cache) before it waits for the kernel before it, so that the memory is busy throughout a
layer.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from lightllm.ops.triton.attention_parts import sm_count
from lightllm.ops.triton.attention_scores import is_float32
from lightllm.ops.triton.launch import cdiv, launch, launch_config, pdl_options

MAX_ROWS = 32
MAX_TILES = 1024
"""Tiles, times the parts of each, whose results the workspace has room for."""
_BLOCK_N = 64
"""The widest tile of any configuration."""
_PROGRAMS = 3
"""For each multiprocessor, if the weight is large enough."""
_SHORTEST_PART = 4
"""Steps of the loop that a part has at least: fewer read too little to be worth the adding up."""
_LINE = tl.constexpr(64)
"""Elements of 2 bytes that one prefetch brings."""


@triton.jit(do_not_specialize=["rows", "steps"])
def skinny_linear_kernel(
    x_ptr, weight_ptr, bias_ptr, norm_ptr, out_ptr, sums_ptr, squares_ptr, arrived_ptr,
    rows, size, inner_size, steps, x_stride, weight_stride, out_stride, eps,
    NORM: tl.constexpr, GATED: tl.constexpr, ADD: tl.constexpr, BIAS: tl.constexpr, SPLIT: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, EXACT: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """y = x Wᵀ + bias; NORM: of x * norm / sqrt(mean(x²) + eps). GATED: W has 2 * size rows, and out = silu(y of the first
    half) * y of the second; ADD: out += y. Grid (ceil(size / BLOCK_N), parts of inner_size).

    The norm's scale is a row's, and is applied to the product. Rounding is that of the layers by themselves: y before it is
    used again.
    """
    # long because: accumulators stay in registers from the loop to the end
    columns = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    row = tl.arange(0, BLOCK_M)
    inner = tl.arange(0, BLOCK_K)
    # Multiples of BLOCK_K: the compiler must see it, or loads are of two bytes each.
    begin = tl.program_id(1) * steps * BLOCK_K
    end = tl.minimum(begin + steps * BLOCK_K, inner_size)
    used, real = columns < size, row < rows
    weight_rows = weight_ptr + columns.to(tl.int64)[:, None] * weight_stride
    up_rows = weight_rows + size.to(tl.int64) * weight_stride
    if PDL:
        lines = begin + tl.arange(0, 4) * _LINE
        _prefetch(tl.where(used[:, None] & (lines < end)[None, :], weight_rows + lines[None, :], weight_ptr))
        if GATED:
            _prefetch(tl.where(used[:, None] & (lines < end)[None, :], up_rows + lines[None, :], weight_ptr))
        gdc_wait()
        gdc_launch_dependents()
    acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    up = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    squares = tl.zeros((BLOCK_M,), dtype=tl.float32)
    precision: tl.constexpr = "ieee" if EXACT else "tf32"
    for start in range(begin, end, BLOCK_K):
        place = start + inner
        inside = place < end
        x_mask, weight_mask = real[:, None] & inside[None, :], used[:, None] & inside[None, :]
        x = tl.load(x_ptr + row[:, None] * x_stride + place[None, :], mask=x_mask, other=0.0)
        if NORM:
            wide = x.to(tl.float32)
            squares += tl.sum(wide * wide, 1)
            x = (wide * tl.load(norm_ptr + place, mask=inside, other=0.0).to(tl.float32)[None, :]).to(x.dtype)
        weight = tl.load(weight_rows + place[None, :], mask=weight_mask, other=0.0)
        acc = tl.dot(x, weight.T, acc, input_precision=precision)
        if GATED:
            weight = tl.load(up_rows + place[None, :], mask=weight_mask, other=0.0)
            up = tl.dot(x, weight.T, up, input_precision=precision)
    if SPLIT:
        parts = tl.num_programs(1)
        halves: tl.constexpr = 2 if GATED else 1
        tile = tl.program_id(0) * parts
        cell = row[:, None] * BLOCK_N + tl.arange(0, BLOCK_N)[None, :]
        area: tl.constexpr = BLOCK_M * BLOCK_N
        own = sums_ptr + (tile + tl.program_id(1)) * (halves * area)
        tl.store(own + cell, acc)
        if GATED:
            tl.store(own + area + cell, up)
        if NORM:
            tl.store(squares_ptr + (tile + tl.program_id(1)) * BLOCK_M + row, squares)
        tl.debug_barrier()  # all threads have stored before one of them counts
        if tl.atomic_add(arrived_ptr + tl.program_id(0), 1, sem="acq_rel") < parts - 1:
            return
        tl.store(arrived_ptr + tl.program_id(0), 0)
        acc, up, squares = acc * 0.0, up * 0.0, squares * 0.0
        # What other programs wrote is read past the L1 cache, which may hold older lines.
        for number in range(0, parts):
            other = sums_ptr + (tile + number) * (halves * area)
            acc += tl.load(other + cell, cache_modifier=".cg")
            if GATED:
                up += tl.load(other + area + cell, cache_modifier=".cg")
            if NORM:
                squares += tl.load(squares_ptr + (tile + number) * BLOCK_M + row, cache_modifier=".cg")
    if NORM:
        scale = tl.rsqrt(squares / inner_size + eps)[:, None]
        acc, up = acc * scale, up * scale
    kind = out_ptr.dtype.element_ty
    if BIAS:
        acc += tl.load(bias_ptr + columns, mask=used, other=0.0).to(tl.float32)[None, :]
        if GATED:
            up += tl.load(bias_ptr + size + columns, mask=used, other=0.0).to(tl.float32)[None, :]
    y = acc.to(kind).to(tl.float32)
    if GATED:
        y = (y * tl.sigmoid(y)).to(kind).to(tl.float32) * up.to(kind).to(tl.float32)
    places = out_ptr + row[:, None] * out_stride + columns[None, :]
    mask = real[:, None] & used[None, :]
    if ADD:
        y += tl.load(places, mask=mask, other=0.0).to(tl.float32)
    tl.store(places, y.to(kind), mask=mask)


@triton.jit
def _prefetch(places):
    """Asks for the lines of memory that hold these places; waits for nothing. PTX ISA, "prefetch"."""
    tl.inline_asm_elementwise(
        "prefetch.global.L2 [$1]; mov.u32 $0, 0;", "=r,l", [places], dtype=tl.int32, is_pure=False, pack=1
    )


class Workspace:
    """Where parts of tiles leave their sums; one for each device, for its launches follow one another."""

    def __init__(self, device: torch.device) -> None:
        self.sums = torch.empty(2 * MAX_TILES * MAX_ROWS * _BLOCK_N, dtype=torch.float32, device=device)
        self.squares = torch.empty(MAX_TILES * MAX_ROWS, dtype=torch.float32, device=device)
        self.arrived = torch.zeros(MAX_TILES, dtype=torch.int32, device=device)


@functools.cache
def workspace(device: torch.device) -> Workspace:
    """Made once and never freed: captured graphs hold its address."""
    return Workspace(device)


def norm_linear(
    x: torch.Tensor, norm: torch.Tensor, eps: float, weight: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    out = torch.empty((len(x), len(weight)), dtype=x.dtype, device=x.device)
    _launch(x, weight, bias, out, norm=norm, eps=eps)
    return out


def norm_swiglu(
    x: torch.Tensor, norm: torch.Tensor, eps: float, weight: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    out = torch.empty((len(x), len(weight) // 2), dtype=x.dtype, device=x.device)
    _launch(x, weight, bias, out, norm=norm, eps=eps, GATED=True)
    return out


def linear_add_(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, out: torch.Tensor) -> None:
    _launch(x, weight, bias, out, ADD=True)


def _launch(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    out: torch.Tensor,
    norm: torch.Tensor | None = None,
    eps: float = 0.0,
    GATED: bool = False,
    ADD: bool = False,
) -> None:
    rows, inner = x.shape
    size = out.shape[1]
    assert rows <= MAX_ROWS and x.stride(1) == weight.stride(1) == out.stride(1) == 1
    if rows == 0:
        return
    config = launch_config("skinny_linear", x.device, rows=rows, bytes=x.itemsize, gated=int(GATED))
    steps = part_steps(size, inner, config, sm_count(x.device))
    parts = cdiv(inner, steps * config["BLOCK_K"])
    room = workspace(x.device)
    launch(
        skinny_linear_kernel, (cdiv(size, config["BLOCK_N"]), parts),
        x, weight, bias, norm, out, room.sums, room.squares, room.arrived,
        rows, size, inner, steps, x.stride(0), weight.stride(0), out.stride(0), eps,
        NORM=norm is not None, GATED=GATED, ADD=ADD, BIAS=bias is not None, SPLIT=parts > 1,
        BLOCK_M=16 if rows <= 16 else 32, EXACT=is_float32(x), **config, **pdl_options(x.device),
    )  # fmt: skip


def part_steps(size: int, inner: int, config: dict[str, Any], num_sms: int) -> int:
    """How many blocks of `inner` a program takes: so few that `_PROGRAMS` a multiprocessor are busy, if that is enough to do."""
    tiles, steps = cdiv(size, config["BLOCK_N"]), cdiv(inner, config["BLOCK_K"])
    parts = max(min(num_sms * _PROGRAMS // tiles, steps // _SHORTEST_PART, MAX_TILES // tiles), 1)
    return cdiv(steps, parts)
