"""Routing, alignment and grouped GEMM against loops over tokens in float64."""

import pytest
import torch
from support.kernels import DEVICE, DTYPES, assert_close
from support.moe_cases import (
    BROKEN_LOGITS,
    FORMS,
    LOW_LOGITS,
    ExpertsCase,
    broken_routing_case,
    check_broken_routing,
    expected_routing,
    routing_case,
)

from lightllm.ops.packed_experts import Expert, StackedExperts
from lightllm.ops.triton.gated_activation import silu_and_mul
from lightllm.ops.triton.moe_align import align_pairs
from lightllm.ops.triton.moe_experts import run_experts
from lightllm.ops.triton.moe_routing import choose_experts


@pytest.mark.parametrize("name", FORMS)
def test_the_experts_of_each_token_and_their_weights(name: str) -> None:
    form, logits, bias = routing_case(name, tokens=12)
    weights, experts = choose_experts(logits.to(DEVICE), form, None if bias is None else bias.to(DEVICE))
    expected_weights, expected_experts = expected_routing(logits, form, bias)
    assert experts.tolist() == expected_experts
    torch.testing.assert_close(weights.cpu().double(), expected_weights, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("tokens", [1, 7, 700])
@pytest.mark.parametrize("block", [16, 64])
def test_pairs_are_sorted_by_expert_and_cut_into_blocks(tokens: int, block: int) -> None:
    count = 5
    experts = ExpertsCase(tokens, count=count).experts
    aligned = align_pairs(experts.to(DEVICE), count, block)
    flat = experts.flatten()
    assert aligned.pairs.tolist() == flat.argsort(stable=True).tolist()
    ends = flat.bincount(minlength=count).cumsum(0).tolist()
    assert aligned.ends.tolist() == ends
    expected = [
        (expert, start)
        for expert, (first, end) in enumerate(zip([0, *ends], ends))
        for start in range(first, end, block)
    ]
    used = int(aligned.num_blocks)
    assert used <= len(aligned.block_expert)
    blocks = zip(aligned.block_expert[:used].tolist(), aligned.block_start[:used].tolist())
    assert list(blocks) == expected


@pytest.mark.parametrize(
    ("tokens", "bias", "dtype"),
    [(1, False, DTYPES[0]), (129, True, DTYPES[0]), *((33, True, dtype) for dtype in DTYPES[1:])],
)
def test_each_token_is_computed_by_its_experts(tokens: int, bias: bool, dtype: torch.dtype) -> None:
    case = ExpertsCase(tokens, bias=bias)
    for name in ("x", "gate_up", "down", "gate_up_bias", "down_bias"):
        setattr(case, name, getattr(case, name).to(dtype))

    def expert(number: int) -> Expert:
        return Expert(*(None if part is None else part.to(DEVICE) for part in case.expert(number)))

    x, weights, experts = (tensor.to(DEVICE) for tensor in (case.x, case.weights, case.experts))
    result = run_experts(x, weights, experts, StackedExperts(case.count, expert), silu_and_mul)
    assert result.dtype == dtype
    assert_close(result.cpu(), case.expected(), factor=5)


@pytest.mark.parametrize("value", LOW_LOGITS.values(), ids=list(LOW_LOGITS))
@pytest.mark.parametrize("name", ["DeepSeek-V3", "GLM-4.5"])
def test_scores_that_vanish_are_divided_as_the_published_gate_does(name: str, value: float) -> None:
    form, logits, bias = routing_case(name, tokens=9)
    logits = logits / 10 + value
    weights, experts = choose_experts(logits.to(DEVICE), form, None if bias is None else bias.to(DEVICE))
    expected_weights, expected_experts = expected_routing(logits, form, bias)
    assert experts.tolist() == expected_experts
    torch.testing.assert_close(weights.cpu().double(), expected_weights, rtol=1e-4, atol=1e-30)


@pytest.mark.parametrize("value", BROKEN_LOGITS.values(), ids=list(BROKEN_LOGITS))
@pytest.mark.parametrize("name", FORMS)
def test_logits_that_are_no_numbers_choose_experts_that_exist(name: str, value: float) -> None:
    form, logits, bias = broken_routing_case(name, value)
    check_broken_routing(
        form, *choose_experts(logits.to(DEVICE), form, None if bias is None else bias.to(DEVICE))
    )
