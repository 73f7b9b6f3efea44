"""The gates of SwiGLU, clamped SwiGLU and GeGLU against their formulas in float64."""

import math

import pytest
import torch
from support.references import gated

from lightllm.ops.gated_activation import clamped_swiglu, gelu_and_mul, silu_and_mul

pytestmark = pytest.mark.usefixtures("implementation")
ACTIVATIONS = {
    "silu": silu_and_mul,
    "clamped": lambda gate_up: clamped_swiglu(gate_up, 7.0, 1.702),
    "tanh": lambda gate_up: gelu_and_mul(gate_up, "tanh"),
    "none": lambda gate_up: gelu_and_mul(gate_up, "none"),
}
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1.6e-2, torch.float16: 2e-3}


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize(("tokens", "size"), [(0, 16), (1, 1), (33, 24), (2, 2049)])
def test_gates_equal_their_formula(tokens: int, size: int, activation: str, dtype: torch.dtype) -> None:
    gate_up = (torch.randn(tokens, 2 * size) * 3).to(dtype)
    result = ACTIVATIONS[activation](gate_up)
    assert result.dtype == dtype and result.shape == (tokens, size)
    torch.testing.assert_close(
        result.double(), gated(gate_up, activation), rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype]
    )


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_large_gates_neither_overflow_nor_vanish(activation: str) -> None:
    gate_up = torch.tensor([[-3e38, -1e4, 1e4, -90.0, 60.0] + [1.0] * 5])
    result = ACTIVATIONS[activation](gate_up)
    at_the_limit = 14 / (1 + math.exp(-1.702 * 7))
    large, small = (at_the_limit, at_the_limit) if activation == "clamped" else (1e4, 60.0)
    torch.testing.assert_close(result, torch.tensor([[0.0, 0.0, large, 0.0, small]]), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_number_that_is_none_stays_one_where_it_is(activation: str, bad: float) -> None:
    gate_up = torch.ones(3, 80)
    gate_up[1, 40 + 7] = bad
    if not math.isinf(bad) or activation == "silu" and bad > 0:
        gate_up[1, 30] = bad
    result = ACTIVATIONS[activation](gate_up)
    broken = ~result.isfinite()
    assert not broken[0].any() and not broken[2].any()
    if activation != "clamped" or math.isnan(bad):
        assert broken[1, 7]
    assert bool(broken[1, 30]) == (bool(gate_up[1, 30] != 1) and (activation != "clamped" or math.isnan(bad)))
    assert broken[1].sum() == broken[1, [7, 30]].sum()


def test_rows_of_a_wider_tensor_are_read_where_they_are() -> None:
    wide = torch.randn(5, 80)
    result = silu_and_mul(wide[:, 8:56])
    torch.testing.assert_close(result.double(), gated(wide[:, 8:56], "silu"), rtol=1e-5, atol=1e-5)
