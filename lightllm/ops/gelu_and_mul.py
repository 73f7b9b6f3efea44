"""The gate of a GeGLU MLP (Shazeer 2020, arXiv 2002.05202): gelu(gate) * up."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def gelu_and_mul(gate_up: torch.Tensor, approximate: str = "tanh") -> torch.Tensor:
    """gate_up: [T, 2 * size], the gate in the first half. Returns [T, size] of the same dtype.

    approximate: "tanh" for 0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x³))), "none" for x Φ(x).
    """
    if gate_up.is_cuda:
        from lightllm.ops.triton import gated_activation as triton_impl

        return triton_impl.gelu_and_mul(gate_up, approximate)
    gate, up = gate_up.chunk(2, dim=-1)
    return F.gelu(gate, approximate=approximate).mul_(up)
