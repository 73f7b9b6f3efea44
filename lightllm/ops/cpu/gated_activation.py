"""Gates of MLPs with a kernel of our own: see `kernels/gated_activation.py`."""

from __future__ import annotations

import torch

from lightllm.ops.cpu.calls import gated_activation as at
from lightllm.ops.cpu.rows import RowKernels

_kernels = RowKernels("gated_activation", at.LENGTH, 1 << 16)


def gated_activation(gate_up: torch.Tensor, activation: int) -> torch.Tensor | None:
    """`silu_and_mul` or `gelu_and_mul`; None where there is no kernel for it."""
    kernel = _kernels.find(gate_up.dtype)
    if kernel is None or gate_up.dim() != 2 or gate_up.stride(1) != 1:
        return None
    rows, size, itemsize = gate_up.shape[0], gate_up.shape[1] // 2, gate_up.itemsize
    out = gate_up.new_empty(rows, size)
    _kernels.run(
        kernel, rows, size,
        gate_up.data_ptr(), gate_up.stride(0) * itemsize, size * itemsize, size,
        out.data_ptr(), size * itemsize, activation,
    )  # fmt: skip
    return out
