"""Chooses the experts of each token."""

from __future__ import annotations

import torch

from lightllm.ops.moe_routing_spec import MoeRoutingSpec
from lightllm.ops.torch import moe_routing as torch_impl


def choose_experts(
    logits: torch.Tensor, spec: MoeRoutingSpec, bias: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """See `MoeRoutingSpec`. logits: [T, num_experts] of any dtype; bias: float32 [num_experts], or None.

    Returns weights float32 [T, top_k] and experts int32 [T, top_k], the best first.
    """
    if logits.is_cuda:
        from lightllm.ops.triton import moe_routing as triton_impl

        return triton_impl.choose_experts(logits, spec, bias)
    return torch_impl.choose_experts(logits, spec, bias)
