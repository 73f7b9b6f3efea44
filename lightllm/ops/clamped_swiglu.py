"""The gate of gpt-oss's experts and of Phi-3-small: a SwiGLU whose inputs are clamped, its linear half raised by one."""

from __future__ import annotations

import torch


def clamped_swiglu(gate_up: torch.Tensor, limit: float, alpha: float) -> torch.Tensor:
    """(min(max(up, -limit), limit) + 1) * g * sigmoid(alpha * g) with g = min(gate, limit).

    gate_up: [T, 2 * size], the gate in the first half. Returns [T, size] of the same dtype.
    """
    if gate_up.is_cuda:
        from lightllm.ops.triton import gated_activation as triton_impl

        return triton_impl.clamped_swiglu(gate_up, limit, alpha)
    gate, up = gate_up.chunk(2, dim=-1)
    gate = gate.clamp(max=limit)
    return torch.sigmoid(gate * alpha).mul_(gate).mul_(up.clamp(-limit, limit).add_(1))
