"""A mixture's experts: gated MLPs of one shape, of which each token uses some."""

from __future__ import annotations

from collections.abc import Callable

import torch

from lightllm.ops.packed_experts import PackedExperts, StackedExperts


def run_experts(
    x: torch.Tensor,
    weights: torch.Tensor,
    experts: torch.Tensor,
    packed: PackedExperts | StackedExperts,
    activation: Callable[[torch.Tensor], torch.Tensor],
) -> torch.Tensor:
    """out[t] = sum over j of weights[t, j] * expert(x[t]), the expert being number experts[t, j].

    expert(x) = down(activation(gate_up(x))). x: [T, hidden]; weights float32 and experts int32 [T, top_k] as
    `choose_experts` returns them; activation: from [n, 2 * width], the gate in the first half, to [n, width]. Returns
    [T, hidden] of x's dtype. Each expert's weights are read once, those of experts that no token uses not at all.
    """
    if isinstance(packed, StackedExperts):
        from lightllm.ops.triton import moe_experts as triton_impl

        return triton_impl.run_experts(x, weights, experts, packed, activation)
    # Tokens are sorted by expert, and each expert that has any computes all of its own at once.
    top_k = experts.shape[1]
    flat = experts.flatten()
    order = flat.argsort(stable=True)
    tokens = order // top_k
    gathered = x.index_select(0, tokens)
    results = torch.empty_like(gathered)
    start = 0
    for expert, count in enumerate(torch.bincount(flat).tolist()):
        if count:
            own = slice(start, start + count)
            inner = activation(packed.gate_up[expert](gathered[own]))
            results[own] = packed.down[expert](inner)
            start += count
    results *= weights.flatten()[order, None].to(results.dtype)
    return torch.zeros_like(x).index_add_(0, tokens, results)
