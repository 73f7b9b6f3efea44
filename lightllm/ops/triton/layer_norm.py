"""LayerNorm, alone or after the residual addition: one program a row, which stays in registers."""

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
def layer_norm_kernel(
    x_ptr, residual_ptr, weight_ptr, bias_ptr, out_ptr,
    x_stride, residual_stride, out_stride,
    x_head_stride, out_head_stride, weight_head_stride,
    heads, size, eps,
    ADD: tl.constexpr, BIAS: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """out[t, h] = (y - mean(y)) / sqrt(mean((y - mean(y))²) + eps) * weight[h] + bias[h]; y = x[t, h], or with ADD
    residual[t, h] += x[t, h].

    Grid (T * heads,). Strides in elements; the last dimension is contiguous. BLOCK >= size, a power of two.
    """
    row = tl.program_id(0)
    token, head = (row // heads).to(tl.int64), row % heads
    columns = tl.arange(0, BLOCK)
    inside = columns < size
    weight = tl.load(weight_ptr + head * weight_head_stride + columns, mask=inside, other=0.0).to(tl.float32)
    if BIAS:
        bias = tl.load(bias_ptr + head * weight_head_stride + columns, mask=inside, other=0.0).to(tl.float32)
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    x = tl.load(x_ptr + token * x_stride + head * x_head_stride + columns, mask=inside, other=0.0)
    y = x.to(tl.float32)
    if ADD:
        place = residual_ptr + token * residual_stride + columns
        total = (tl.load(place, mask=inside, other=0.0).to(tl.float32) + y).to(x.dtype)
        tl.store(place, total, mask=inside)
        y = total.to(tl.float32)
    y = tl.where(inside, y - tl.sum(y, 0) / size, 0.0)
    y = y * tl.rsqrt(tl.sum(y * y, 0) / size + eps) * weight
    if BIAS:
        y += bias
    tl.store(out_ptr + token * out_stride + head * out_head_stride + columns, y.to(x.dtype), mask=inside)


def layer_norm(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, eps: float) -> torch.Tensor:
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    _launch(_with_heads(x), None, weight, bias, _with_heads(out), eps)
    return out


def fused_add_layer_norm(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, eps: float
) -> torch.Tensor:
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    _launch(x[:, None], residual, weight, bias, out[:, None], eps)
    return out


def _with_heads(x: torch.Tensor) -> torch.Tensor:
    """[..., size] as [T, heads, size]."""
    return x if x.dim() == 3 else x.reshape(-1, 1, x.shape[-1])


def _launch(
    x: torch.Tensor,
    residual: torch.Tensor | None,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    out: torch.Tensor,
    eps: float,
) -> None:
    """x, out: [T, heads, size]."""
    tokens, heads, size = x.shape
    if tokens == 0:
        return
    assert x.stride(2) == 1 and weight.stride(-1) == 1
    assert bias is None or bias.stride() == weight.stride()
    layer_norm_kernel[(tokens * heads,)](
        x, residual, weight, bias, out,
        x.stride(0), 0 if residual is None else residual.stride(0), out.stride(0),
        x.stride(1), out.stride(1), weight.stride(0) if weight.dim() == 2 else 0,
        heads, size, eps,
        ADD=residual is not None, BIAS=bias is not None, BLOCK=triton.next_power_of_2(size),
        **launch_config("layer_norm", x.device, size=size), **pdl_options(x.device),
    )  # fmt: skip


def _case(label: str, size: int, heads: int, add: bool, bias: bool, short: bool = False) -> CompileCase:
    return CompileCase(
        kernel=layer_norm_kernel,
        label=label,
        arguments={
            "x_ptr": "*bf16:16", "residual_ptr": "*bf16:16" if add else None, "weight_ptr": "*bf16:16",
            "bias_ptr": "*bf16:16" if bias else None, "out_ptr": "*bf16:16",
            "x_stride": "i32:16", "residual_stride": "i32:16", "out_stride": "i32:16",
            "x_head_stride": "i32:16", "out_head_stride": "i32:16", "weight_head_stride": "i32:16",
            "heads": "i32" if heads > 1 else 1, "size": "i32:16", "eps": "fp32",
            "ADD": add, "BIAS": bias, "BLOCK": triton.next_power_of_2(size),
        },
        config="layer_norm",
        sizes={"size": size},
        short=short,
    )  # fmt: skip


COMPILE_CASES = [
    _case("per head, 128 wide", 128, 40, add=False, bias=False),
    _case("1024 wide, bias, residual added", 1024, 1, add=True, bias=True),
    _case("4096 wide, bias, residual added", 4096, 1, add=True, bias=True, short=True),
    _case("14336 wide, bias", 14336, 1, add=False, bias=True, short=True),
    _case("14336 wide, bias, residual added", 14336, 1, add=True, bias=True),
]


def _problem(size: int) -> Callable[[torch.device], Callable[[], object]]:
    def make(device: torch.device) -> Callable[[], object]:
        x, residual, weight, bias = (torch.randn(n, size, device=device).bfloat16() for n in (64, 64, 1, 1))
        return lambda: fused_add_layer_norm(x, residual, weight[0], bias[0], 1e-6)

    return make


TUNING_CASES = [
    TuningCase(
        config="layer_norm",
        sizes={"size": size},
        up_to={"size": size} if size < 16384 else {},
        candidates=grid(num_warps=(1, 2, 4, 8, 16, 32)),
        make=_problem(size),
    )
    for size in (256, 1024, 2048, 4096, 8192, 16384)
]
