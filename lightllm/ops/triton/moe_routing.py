"""Choice of experts: a token a program, its experts in registers as groups x experts of a group."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from lightllm.ops.moe_routing_spec import TINY, MoeRoutingSpec
from lightllm.ops.triton.launch import next_power_of_2, pdl_options

_SCORINGS = {"softmax": 0, "sigmoid": 1, "top_k_softmax": 2}


_TINY = tl.constexpr(TINY)


@triton.jit
def _best(values, left, index, nothing):
    """The lowest index where the largest of values [G, S] stands among those that are left; one always is."""
    values = tl.where(left, values, float("-inf"))
    top = tl.max(tl.max(values, 1), 0)
    place = tl.where(left & (values == top), index, nothing)
    return tl.min(tl.min(place, 1), 0)


@triton.jit
def choose_experts_kernel(
    logits_ptr, bias_ptr, weights_ptr, experts_ptr, stride, scale,
    TOP_K: tl.constexpr, GROUPS: tl.constexpr, SIZE: tl.constexpr, TOP_GROUPS: tl.constexpr,
    SCORING: tl.constexpr, NORMALISE: tl.constexpr, BIAS: tl.constexpr,
    BLOCK_G: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_K: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """See `MoeRoutingSpec`; SIZE: experts of a group. Grid (T,)."""
    token = tl.program_id(0).to(tl.int64)
    group = tl.arange(0, BLOCK_G)
    place = tl.arange(0, BLOCK_S)
    index = group[:, None] * SIZE + place[None, :]
    inside = (group < GROUPS)[:, None] & (place < SIZE)[None, :]
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    low = float("-inf")
    scores = tl.load(logits_ptr + token * stride + index, mask=inside, other=low).to(tl.float32)
    if SCORING == 0:
        scores = tl.exp(scores - tl.max(tl.max(scores, 1), 0))
        scores = scores / tl.sum(tl.sum(scores, 1), 0)
    elif SCORING == 1:
        scores = tl.sigmoid(scores)
    choice = tl.where(inside, scores, low)
    if BIAS:
        choice += tl.load(bias_ptr + index, mask=inside, other=0.0)
    choice = tl.where(choice != choice, low, choice)  # nothing is equal to NaN
    if TOP_GROUPS < GROUPS:
        worth = tl.max(choice, 1)
        if BIAS:
            first = tl.min(tl.where(choice == worth[:, None], place[None, :], BLOCK_S), 1)
            second = tl.where(place[None, :] == first[:, None], low, choice)
            worth += tl.max(second, 1)
        worth = tl.where(group < GROUPS, worth, low)
        stays = group < 0
        for _ in tl.static_range(TOP_GROUPS):
            left = tl.where(stays, low, worth)
            chosen = tl.min(tl.where(left == tl.max(left, 0), group, BLOCK_G), 0)
            stays = stays | (group == chosen)
        choice = tl.where(stays[:, None], choice, low)
    order = tl.arange(0, BLOCK_K)
    weights = tl.zeros((BLOCK_K,), dtype=tl.float32)
    experts = tl.zeros((BLOCK_K,), dtype=tl.int32)
    left = inside
    for k in tl.static_range(TOP_K):
        expert = _best(choice, left, index, BLOCK_G * BLOCK_S)
        here = inside & (index == expert)
        score = tl.sum(tl.sum(tl.where(here, scores, 0.0), 1), 0)
        left = left & (index != expert)
        weights = tl.where(order == k, score, weights)
        experts = tl.where(order == k, expert, experts)
    if SCORING == 2:
        weights = tl.where(order < TOP_K, weights, low)
        weights = tl.exp(weights - tl.max(weights, 0))
        weights = weights / tl.sum(weights, 0)
    elif NORMALISE:
        weights = weights / (tl.sum(weights, 0) + _TINY)
    out = token * TOP_K + order
    tl.store(weights_ptr + out, weights * scale, mask=order < TOP_K)
    tl.store(experts_ptr + out, experts, mask=order < TOP_K)


def choose_experts(
    logits: torch.Tensor, spec: MoeRoutingSpec, bias: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    tokens = logits.shape[0]
    weights = torch.empty((tokens, spec.top_k), dtype=torch.float32, device=logits.device)
    experts = torch.empty((tokens, spec.top_k), dtype=torch.int32, device=logits.device)
    if tokens == 0:
        return weights, experts
    assert logits.stride(1) == 1
    choose_experts_kernel[(tokens,)](
        logits, bias, weights, experts, logits.stride(0), spec.scale,
        num_warps=1, **constants(spec, bias is not None), **pdl_options(logits.device),
    )  # fmt: skip
    return weights, experts


def constants(spec: MoeRoutingSpec, bias: bool) -> dict[str, int | bool]:
    size = spec.num_experts // spec.groups
    return {
        "TOP_K": spec.top_k, "GROUPS": spec.groups, "SIZE": size, "TOP_GROUPS": spec.top_groups,
        "SCORING": _SCORINGS[spec.scoring], "NORMALISE": spec.normalise, "BIAS": bias,
        "BLOCK_G": next_power_of_2(spec.groups), "BLOCK_S": next_power_of_2(size),
        "BLOCK_K": next_power_of_2(spec.top_k),
    }  # fmt: skip
