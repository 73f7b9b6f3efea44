"""The gates of MLPs: from [T, 2 * size], the gate in the first half, to [T, size] of the same dtype."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from lightllm.ops.cpu import gated_activation as cpu_impl
from lightllm.ops.cpu.calls.gated_activation import GELU_TANH, SILU


def silu_and_mul(gate_up: torch.Tensor) -> torch.Tensor:
    """SwiGLU (Shazeer 2020, arXiv 2002.05202): silu(gate) * up."""
    if gate_up.is_cuda:
        from lightllm.ops.triton import gated_activation as triton_impl

        return triton_impl.silu_and_mul(gate_up)
    result = cpu_impl.gated_activation(gate_up, SILU)
    if result is not None:
        return result
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate).mul_(up)


def gelu_and_mul(gate_up: torch.Tensor, approximate: str = "tanh") -> torch.Tensor:
    """GeGLU (Shazeer 2020): gelu(gate) * up.

    approximate: "tanh" for 0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x³))), "none" for x Φ(x).
    """
    if gate_up.is_cuda:
        from lightllm.ops.triton import gated_activation as triton_impl

        return triton_impl.gelu_and_mul(gate_up, approximate)
    result = cpu_impl.gated_activation(gate_up, GELU_TANH) if approximate == "tanh" else None
    if result is not None:
        return result
    gate, up = gate_up.chunk(2, dim=-1)
    return F.gelu(gate, approximate=approximate).mul_(up)


def clamped_swiglu(gate_up: torch.Tensor, limit: float, alpha: float) -> torch.Tensor:
    """The gate of gpt-oss's experts and of Phi-3-small, a SwiGLU whose inputs are clamped, its linear half raised by one:
    (min(max(up, -limit), limit) + 1) * g * sigmoid(alpha * g) with g = min(gate, limit)."""
    if gate_up.is_cuda:
        from lightllm.ops.triton import gated_activation as triton_impl

        return triton_impl.clamped_swiglu(gate_up, limit, alpha)
    gate, up = gate_up.chunk(2, dim=-1)
    gate = gate.clamp(max=limit)
    return torch.sigmoid(gate * alpha).mul_(gate).mul_(up.clamp(-limit, limit).add_(1))
