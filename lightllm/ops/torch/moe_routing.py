"""Choice of experts in plain torch."""

from __future__ import annotations

import torch

from lightllm.ops.routing_form import TINY, RoutingForm


def choose_experts(
    logits: torch.Tensor, form: RoutingForm, bias: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    scores = logits.float()
    if form.scoring == "softmax":
        scores = scores.softmax(-1)
    elif form.scoring == "sigmoid":
        scores = scores.sigmoid()
    choice = scores if bias is None else scores + bias
    if form.groups > form.top_groups:
        grouped = choice.view(len(choice), form.groups, -1)
        worth = grouped.amax(-1) if bias is None else grouped.topk(2, -1).values.sum(-1)
        left_out = torch.ones_like(worth, dtype=torch.bool)
        left_out.scatter_(1, worth.topk(form.top_groups, -1).indices, False)
        choice = grouped.masked_fill(left_out[..., None], float("-inf")).flatten(1)
    experts = choice.topk(form.top_k, -1).indices
    weights = scores.gather(1, experts)
    if form.scoring == "top_k_softmax":
        weights = weights.softmax(-1)
    elif form.normalise:
        weights = weights / (weights.sum(-1, keepdim=True) + TINY)
    if form.scale != 1:
        weights = weights * form.scale
    return weights, experts.int()
