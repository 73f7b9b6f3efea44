"""The gate of a SwiGLU MLP (Shazeer 2020, arXiv 2002.05202): silu(gate) * up."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def silu_and_mul(gate_up: torch.Tensor) -> torch.Tensor:
    """gate_up: [T, 2 * size], the gate in the first half. Returns [T, size] of the same dtype."""
    if gate_up.is_cuda:
        from lightllm.ops.triton import gated_activation as triton_impl

        return triton_impl.silu_and_mul(gate_up)
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate).mul_(up)
