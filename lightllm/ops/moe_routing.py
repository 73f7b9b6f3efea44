"""Chooses the experts of each token."""

from __future__ import annotations

import torch

from lightllm.ops.moe_routing_spec import TINY, MoeRoutingSpec


def choose_experts(
    logits: torch.Tensor, spec: MoeRoutingSpec, bias: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """See `MoeRoutingSpec`. logits: [T, num_experts] of any dtype; bias: float32 [num_experts], or None.

    Returns weights float32 [T, top_k] and experts int32 [T, top_k], the best first.
    """
    if logits.is_cuda:
        from lightllm.ops.triton import moe_routing as triton_impl

        return triton_impl.choose_experts(logits, spec, bias)
    scores = logits.float()
    if spec.scoring == "softmax":
        scores = scores.softmax(-1)
    elif spec.scoring == "sigmoid":
        scores = scores.sigmoid()
    choice = scores if bias is None else scores + bias
    if spec.groups > spec.top_groups:
        grouped = choice.view(len(choice), spec.groups, -1)
        worth = grouped.amax(-1) if bias is None else grouped.topk(2, -1).values.sum(-1)
        left_out = torch.ones_like(worth, dtype=torch.bool)
        left_out.scatter_(1, worth.topk(spec.top_groups, -1).indices, False)
        choice = grouped.masked_fill(left_out[..., None], float("-inf")).flatten(1)
    experts = choice.topk(spec.top_k, -1).indices
    weights = scores.gather(1, experts)
    if spec.scoring == "top_k_softmax":
        weights = weights.softmax(-1)
    elif spec.normalise:
        weights = weights / (weights.sum(-1, keepdim=True) + TINY)
    if spec.scale != 1:
        weights = weights * spec.scale
    return weights, experts.int()
