"""act(gate) * up, for the gates of SwiGLU, clamped SwiGLU and GeGLU: a block of one token's columns a program."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from lightllm.ops.triton.launch import cdiv, launch, launch_config, pdl_options

SILU, GELU_TANH, GELU_ERF, CLAMPED_SWIGLU = 0, 1, 2, 3


@triton.jit
def gated_activation_kernel(
    gate_up_ptr, out_ptr, stride, out_stride, size, limit, alpha,
    ACTIVATION: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """out[t, i] = act(gate_up[t, i]) * gate_up[t, size + i]. Grid (T, ceil(size / BLOCK)).

    silu(x) = x sigmoid(x); gelu by tanh: 0.5 x (1 + tanh u) = x sigmoid(2 u), u = sqrt(2 / pi) (x + 0.044715 x³); gelu by
    erf: 0.5 x (1 + erf(x / sqrt 2)); clamped SwiGLU: x sigmoid(alpha x), x at most `limit`, times 1 + up within it.
    """
    token = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < size
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    gate = tl.load(gate_up_ptr + token * stride + columns, mask=inside, other=0.0)
    up = tl.load(gate_up_ptr + token * stride + size + columns, mask=inside, other=0.0).to(tl.float32)
    x = gate.to(tl.float32)
    if ACTIVATION == 0:
        x = x * tl.sigmoid(x)
    elif ACTIVATION == 1:
        x = x * tl.sigmoid(1.5957691216057308 * (x + 0.044715 * x * x * x))
    elif ACTIVATION == 2:
        x = 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))
    else:
        x = tl.minimum(x, limit)
        x = x * tl.sigmoid(alpha * x)
        up = (tl.minimum(tl.maximum(up, -limit), limit) + 1.0).to(gate.dtype).to(tl.float32)
    x = x.to(gate.dtype).to(tl.float32)
    tl.store(out_ptr + token * out_stride + columns, (x * up).to(gate.dtype), mask=inside)


def silu_and_mul(gate_up: torch.Tensor) -> torch.Tensor:
    return _launch(gate_up, SILU)


def gelu_and_mul(gate_up: torch.Tensor, approximate: str = "tanh") -> torch.Tensor:
    return _launch(gate_up, GELU_TANH if approximate == "tanh" else GELU_ERF)


def clamped_swiglu(gate_up: torch.Tensor, limit: float, alpha: float) -> torch.Tensor:
    return _launch(gate_up, CLAMPED_SWIGLU, limit, alpha)


def _launch(gate_up: torch.Tensor, activation: int, limit: float = 0.0, alpha: float = 0.0) -> torch.Tensor:
    tokens, size = gate_up.shape[0], gate_up.shape[1] // 2
    out = torch.empty((tokens, size), dtype=gate_up.dtype, device=gate_up.device)
    if tokens == 0:
        return out
    assert gate_up.stride(1) == 1
    config = launch_config("gated_activation", gate_up.device, tokens=tokens)
    launch(
        gated_activation_kernel, (tokens, cdiv(size, config["BLOCK"])),
        gate_up, out, gate_up.stride(0), out.stride(0), size, limit, alpha,
        ACTIVATION=activation, **config, **pdl_options(gate_up.device),
    )  # fmt: skip
    return out
