"""The gates of SwiGLU, clamped SwiGLU and GeGLU against their formulas in float64."""

import math

import pytest
import torch
from support.kernels import DEVICE, DTYPES, assert_close
from support.references import gated

from lightllm.ops.triton.gated_activation import clamped_swiglu, gelu_and_mul, silu_and_mul

ACTIVATIONS = {
    "silu": silu_and_mul,
    "clamped": lambda gate_up: clamped_swiglu(gate_up, 7.0, 1.702),
    "tanh": lambda gate_up: gelu_and_mul(gate_up, "tanh"),
    "none": lambda gate_up: gelu_and_mul(gate_up, "none"),
}


SLOW_SHAPES = [pytest.param(*shape, marks=pytest.mark.slow) for shape in ((1, 513), (129, 1))]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize(("tokens", "size"), [(0, 16), (1, 1), (33, 24), (2, 2049), *SLOW_SHAPES])
def test_gates_equal_their_formula(tokens: int, size: int, activation: str, dtype: torch.dtype) -> None:
    gate_up = (torch.randn(tokens, 2 * size) * 3).to(DEVICE, dtype)
    result = ACTIVATIONS[activation](gate_up)
    assert result.dtype == dtype and result.shape == (tokens, size)
    assert_close(result, gated(gate_up, activation))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_large_gates_neither_overflow_nor_vanish(activation: str) -> None:
    gate_up = torch.tensor([[-1e4, 1e4, -60.0, 60.0] + [1.0] * 4], device=DEVICE)
    result = ACTIVATIONS[activation](gate_up)
    at_the_limit = 14 / (1 + math.exp(-1.702 * 7))
    large, small = (at_the_limit, at_the_limit) if activation == "clamped" else (1e4, 60.0)
    expected = torch.tensor([[0.0, large, 0.0, small]])
    torch.testing.assert_close(result.cpu(), expected, rtol=1e-6, atol=1e-6)


def test_rows_of_a_wider_tensor_are_read_where_they_are() -> None:
    wide = torch.randn(5, 80, device=DEVICE)
    assert_close(silu_and_mul(wide[:, 8:56]), gated(wide[:, 8:56], "silu"))
