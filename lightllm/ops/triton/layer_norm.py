"""LayerNorm, alone or after the residual addition: one program a row, which stays in registers."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from lightllm.ops.triton.norm_launch import launch_rows, with_heads


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
    _launch(with_heads(x), None, weight, bias, with_heads(out), eps)
    return out


def fused_add_layer_norm(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, eps: float
) -> torch.Tensor:
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    _launch(x[:, None], residual, weight, bias, out[:, None], eps)
    return out


def _launch(
    x: torch.Tensor,
    residual: torch.Tensor | None,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    out: torch.Tensor,
    eps: float,
) -> None:
    assert bias is None or bias.stride() == weight.stride()
    launch_rows(
        layer_norm_kernel, "layer_norm", x, residual, weight, out, eps, bias_ptr=bias, BIAS=bias is not None
    )
