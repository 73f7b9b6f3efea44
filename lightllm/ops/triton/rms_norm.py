"""RMSNorm, alone or after the residual addition: one program a row, which stays in registers."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from lightllm.ops.triton.norm_launch import launch_rows, with_heads


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
    launch_rows(rms_norm_kernel, "rms_norm", with_heads(x), None, weight, with_heads(out), eps)
    return out


def fused_add_rms_norm(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float
) -> torch.Tensor:
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    launch_rows(rms_norm_kernel, "rms_norm", x[:, None], residual, weight, out[:, None], eps)
    return out
