"""RMSNorm, alone or after the residual addition: one program a row, which stays in registers."""

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
def rms_norm_kernel(
    x_ptr, residual_ptr, weight_ptr, out_ptr,
    x_stride, residual_stride, out_stride,
    x_head_stride, out_head_stride, weight_head_stride,
    heads, size, eps,
    ADD: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """out[t, h] = y / sqrt(mean(y²) + eps) * weight[h], y = x[t, h]; ADD: y = residual[t, h] += x[t, h].

    Grid (T * heads,). Strides in elements; the last dimension is contiguous. BLOCK >= size, a power of two. The sum and
    the norm are rounded to x's dtype where a plain implementation would round them: before they are used again.
    """
    row = tl.program_id(0)
    token, head = (row // heads).to(tl.int64), row % heads
    columns = tl.arange(0, BLOCK)
    inside = columns < size
    weight = tl.load(weight_ptr + head * weight_head_stride + columns, mask=inside, other=0.0)
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
    scale = tl.rsqrt(tl.sum(y * y, 0) / size + eps)
    y = y * scale
    if weight.dtype != tl.float32:
        y = y.to(x.dtype).to(tl.float32)
    y = y * weight.to(tl.float32)
    tl.store(out_ptr + token * out_stride + head * out_head_stride + columns, y.to(x.dtype), mask=inside)


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    _launch(_with_heads(x), None, weight, _with_heads(out), eps)
    return out


def fused_add_rms_norm(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float
) -> torch.Tensor:
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    _launch(x[:, None], residual, weight, out[:, None], eps)
    return out


def _with_heads(x: torch.Tensor) -> torch.Tensor:
    """[..., size] as [T, heads, size]."""
    return x if x.dim() == 3 else x.reshape(-1, 1, x.shape[-1])


def _launch(
    x: torch.Tensor, residual: torch.Tensor | None, weight: torch.Tensor, out: torch.Tensor, eps: float
) -> None:
    """x, out: [T, heads, size]."""
    tokens, heads, size = x.shape
    if tokens == 0:
        return
    assert x.stride(2) == 1 and weight.stride(-1) == 1
    rms_norm_kernel[(tokens * heads,)](
        x, residual, weight, out,
        x.stride(0), 0 if residual is None else residual.stride(0), out.stride(0),
        x.stride(1), out.stride(1), weight.stride(0) if weight.dim() == 2 else 0,
        heads, size, eps,
        ADD=residual is not None, BLOCK=triton.next_power_of_2(size),
        **launch_config("rms_norm", x.device, size=size), **pdl_options(x.device),
    )  # fmt: skip


def _case(
    label: str, dtype: str, size: int, heads: int, add: bool, short: bool, weight: str = ""
) -> CompileCase:
    pointer = f"*{dtype}:16"
    return CompileCase(
        kernel=rms_norm_kernel,
        label=label,
        arguments={
            "x_ptr": pointer, "residual_ptr": pointer if add else None, "weight_ptr": weight or pointer, "out_ptr": pointer,
            "x_stride": "i32:16", "residual_stride": "i32:16", "out_stride": "i32:16",
            "x_head_stride": "i32:16", "out_head_stride": "i32:16",
            "weight_head_stride": "i32:16",
            "heads": "i32" if heads > 1 else 1, "size": "i32:16", "eps": "fp32",
            "ADD": add, "BLOCK": triton.next_power_of_2(size),
        },
        config="rms_norm",
        sizes={"size": size},
        short=short,
    )  # fmt: skip


COMPILE_CASES = [
    _case("per head, 128 wide", "bf16", 128, 40, add=False, short=True),
    _case("1024 wide, residual added", "bf16", 1024, 1, add=True, short=False),
    _case("4096 wide", "bf16", 4096, 1, add=False, short=False),
    _case("4096 wide, residual added", "bf16", 4096, 1, add=True, short=True),
    _case("8192 wide, residual added", "bf16", 8192, 1, add=True, short=True),
    _case("16384 wide, residual added", "bf16", 16384, 1, add=True, short=True),
    _case("4096 wide, residual added, fp16", "fp16", 4096, 1, add=True, short=False),
    _case("4608 wide, float32 weight", "bf16", 4608, 1, add=True, short=False, weight="*fp32:16"),
]


def _problem(size: int) -> Callable[[torch.device], Callable[[], object]]:
    def make(device: torch.device) -> Callable[[], object]:
        x, residual, weight = (torch.randn(n, size, device=device).bfloat16() for n in (64, 64, 1))
        return lambda: fused_add_rms_norm(x, residual, weight[0], 1e-6)

    return make


TUNING_CASES = [
    TuningCase(
        config="rms_norm",
        sizes={"size": size},
        up_to={"size": size} if size < 16384 else {},
        candidates=grid(num_warps=(1, 2, 4, 8, 16, 32)),
        make=_problem(size),
    )
    for size in (256, 1024, 2048, 4096, 8192, 16384)
]
