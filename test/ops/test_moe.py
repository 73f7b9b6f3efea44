"""Routing and experts on a CPU against loops over tokens in float64."""

import pytest
import torch
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

from lightllm.ops.gated_activation import clamped_swiglu, silu_and_mul
from lightllm.ops.moe_experts import run_experts
from lightllm.ops.moe_routing import choose_experts
from lightllm.ops.packed_experts import Expert, PackedExperts, pack_experts


@pytest.mark.parametrize("name", FORMS)
def test_the_experts_of_each_token_and_their_weights(name: str) -> None:
    form, logits, bias = routing_case(name, tokens=33)
    weights, experts = choose_experts(logits, form, bias)
    expected_weights, expected_experts = expected_routing(logits, form, bias)
    assert weights.dtype == torch.float32 and experts.dtype == torch.int32
    assert experts.tolist() == expected_experts
    torch.testing.assert_close(weights.double(), expected_weights, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("tokens", [1, 5, 40])
@pytest.mark.parametrize("bias", [False, True])
def test_each_token_is_computed_by_its_experts(tokens: int, bias: bool) -> None:
    case = ExpertsCase(tokens, bias=bias)
    packed = pack_experts(torch.device("cpu"), case.count, lambda i: Expert(*case.expert(i)))
    result = run_experts(case.x, case.weights, case.experts, packed, silu_and_mul)
    torch.testing.assert_close(result.double(), case.expected(), rtol=1e-5, atol=1e-5)


def test_an_expert_that_no_token_uses_is_not_touched() -> None:
    case = ExpertsCase(3)
    packed = pack_experts(torch.device("cpu"), case.count, lambda i: Expert(*case.expert(i)))
    assert isinstance(packed, PackedExperts)
    used = set(case.experts.flatten().tolist())
    for number in set(range(case.count)) - used:
        packed.gate_up[number] = packed.down[number] = None  # type: ignore[call-overload]
    assert len(used) < case.count
    run_experts(case.x, case.weights, case.experts, packed, silu_and_mul)


def test_the_clamped_gate_equals_its_formula() -> None:
    gate, up = torch.tensor([[-9.0, 0.5, 9.0, 2.0]]), torch.tensor([[9.0, -9.0, 0.5, 0.25]])
    result = clamped_swiglu(torch.cat((gate, up), 1), limit=7.0, alpha=1.702)
    g, u = gate.double().clamp(max=7), up.double().clamp(-7, 7)
    torch.testing.assert_close(
        result.double(), (u + 1) * g / (1 + torch.exp(-1.702 * g)), rtol=1e-6, atol=1e-6
    )


@pytest.mark.parametrize("value", LOW_LOGITS.values(), ids=list(LOW_LOGITS))
@pytest.mark.parametrize("name", ["DeepSeek-V3", "GLM-4.5"])
def test_scores_that_vanish_are_divided_as_the_published_gate_does(name: str, value: float) -> None:
    form, logits, bias = routing_case(name, tokens=9)
    logits = logits / 10 + value
    weights, experts = choose_experts(logits, form, bias)
    expected_weights, expected_experts = expected_routing(logits, form, bias)
    assert experts.tolist() == expected_experts
    torch.testing.assert_close(weights.cpu().double(), expected_weights, rtol=1e-4, atol=1e-30)


@pytest.mark.parametrize("value", BROKEN_LOGITS.values(), ids=list(BROKEN_LOGITS))
@pytest.mark.parametrize("name", FORMS)
def test_logits_that_are_no_numbers_choose_experts_that_exist(name: str, value: float) -> None:
    form, logits, bias = broken_routing_case(name, value)
    check_broken_routing(form, *choose_experts(logits, form, bias))
