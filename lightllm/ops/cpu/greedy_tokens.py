"""The most likely tokens with a kernel of our own: see `kernels/greedy_tokens.py`."""

from __future__ import annotations

import torch

from lightllm.ops.cpu.calls import greedy_tokens as at
from lightllm.ops.cpu.rows import RowKernels

_kernels = RowKernels("greedy_tokens", at.LENGTH, 1 << 19)


def greedy_tokens(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor] | None:
    """None where there is no kernel for it."""
    kernel = _kernels.find(logits.dtype)
    if kernel is None or logits.stride(1) != 1:
        return None
    rows, size = logits.shape
    token_ids, logprobs = torch.empty(rows, dtype=torch.int64), torch.empty(rows, dtype=torch.float32)
    _kernels.run(
        kernel, rows, size,
        logits.data_ptr(), logits.stride(0) * logits.itemsize, size, token_ids.data_ptr(), logprobs.data_ptr(),
    )  # fmt: skip
    return token_ids, logprobs
