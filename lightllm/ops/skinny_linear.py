"""Linear layers for few rows with what stands before and behind them, each in one launch on a GPU: see
`ops/triton/skinny_linear.py`."""

from __future__ import annotations

import functools
import os

import torch

from lightllm.ops.gated_activation import silu_and_mul
from lightllm.ops.linear import PlainLinear
from lightllm.ops.rms_norm import rms_norm

MAX_ROWS = 32
"""Beyond them a product is more than the reading of its weight."""
VARIABLE = "LIGHTLLM_SKINNY_LINEAR"


@functools.cache
def _switched_on() -> bool:
    """`LIGHTLLM_SKINNY_LINEAR=0` leaves these layers to cuBLAS and to kernels of their own."""
    return os.environ.get(VARIABLE, "1") != "0"


def takes(x: torch.Tensor) -> bool:
    """x: [T, size]. float16 is left out: times a norm's weight it may be too large for its type."""
    return x.is_cuda and len(x) <= MAX_ROWS and x.dtype != torch.float16 and _switched_on()


def norm_linear(x: torch.Tensor, norm: torch.Tensor, eps: float, linear: PlainLinear) -> torch.Tensor:
    """`linear` of `rms_norm(x, norm, eps)`; x: [T, in], at most `MAX_ROWS` rows; norm: [in]. Returns [T, out]."""
    if x.is_cuda:
        from lightllm.ops.triton import skinny_linear as triton_impl

        return triton_impl.norm_linear(x, norm, eps, linear.weight, linear.bias)
    return linear(rms_norm(x, norm, eps))


def norm_swiglu(x: torch.Tensor, norm: torch.Tensor, eps: float, linear: PlainLinear) -> torch.Tensor:
    """`silu_and_mul` of `norm_linear`, whose outputs are the gate's and the other's side by side. Returns [T, out / 2]."""
    if x.is_cuda:
        from lightllm.ops.triton import skinny_linear as triton_impl

        return triton_impl.norm_swiglu(x, norm, eps, linear.weight, linear.bias)
    return silu_and_mul(linear(rms_norm(x, norm, eps)))


def linear_add_(x: torch.Tensor, linear: PlainLinear, residual: torch.Tensor) -> None:
    """Adds linear(x) to `residual`, [T, out], in place; x: [T, in], at most `MAX_ROWS` rows."""
    if x.is_cuda:
        from lightllm.ops.triton import skinny_linear as triton_impl

        triton_impl.linear_add_(x, linear.weight, linear.bias, residual)
    else:
        residual.add_(linear(x))
