"""A mixture of experts in place of an MLP (Shazeer et al. 2017, arXiv 1701.06538; DeepSeekMoE, arXiv 2401.06066)."""

from __future__ import annotations

from collections.abc import Callable

import torch

from lightllm.distributed.tp_group import TpGroup
from lightllm.ops.moe_experts import run_experts
from lightllm.ops.moe_routing import choose_experts
from lightllm.ops.moe_routing_spec import MoeRoutingSpec
from lightllm.ops.packed_experts import PackedExperts, StackedExperts


class MoE:
    """sum of weight * expert(x) over the experts chosen for each token, + shared(x), added up over all ranks.

    Every rank holds a share of each expert's width, as of any MLP's: ranks have the same work whatever is chosen, and the
    results of routed and shared experts are added up in one all-reduce. The router is on every rank.
    """

    def __init__(
        self,
        router: Callable[[torch.Tensor], torch.Tensor],
        spec: MoeRoutingSpec,
        bias: torch.Tensor | None,
        experts: PackedExperts | StackedExperts,
        activation: Callable[[torch.Tensor], torch.Tensor],
        shared: Callable[[torch.Tensor], torch.Tensor] | None,
        group: TpGroup,
    ) -> None:
        """router: from x [T, hidden] to logits [T, experts]; bias: see `choose_experts`; activation: see `run_experts`;
        shared: this rank's part of what computes every token, not added up over ranks, from [T, hidden] to the same shape."""
        self.router, self.spec, self.bias = router, spec, bias
        self.experts, self.activation, self.shared = experts, activation, shared
        self.group = group

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: [T, hidden], the same on every rank. Returns a new tensor of the same shape."""
        weights, experts = choose_experts(self.router(x), self.spec, self.bias)
        out = run_experts(x, weights, experts, self.experts, self.activation)
        if self.shared is not None:
            out.add_(self.shared(x))
        return self.group.all_reduce(out)
