"""RMSNorm and the fused addition against the formula in float64."""

import pytest
import torch
from support.references import rms_norm as reference

from lightllm.ops.rms_norm import fused_add_rms_norm, rms_norm

pytestmark = pytest.mark.usefixtures("implementation")
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1.6e-2, torch.float16: 2e-3}


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("shape", [(1, 64), (33, 64), (5, 7, 96), (0, 64)])
def test_rms_norm_equals_the_formula(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x, weight = (torch.randn(shape) * 3).to(dtype), (torch.randn(shape[-1]) + 1).to(dtype)
    result = rms_norm(x, weight, 1e-5)
    assert result.dtype == dtype
    torch.testing.assert_close(
        result.double(), reference(x, weight, 1e-5), rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype]
    )


def test_each_head_may_have_its_own_weight_and_the_input_may_be_a_slice() -> None:
    x = torch.randn(4, 9, 16)[:, 2:7]
    weight, before = torch.randn(5, 16), x.clone()
    torch.testing.assert_close(
        rms_norm(x, weight, 1e-6).double(), reference(x, weight, 1e-6), rtol=1e-5, atol=1e-5
    )
    assert torch.equal(x, before)


def test_eps_keeps_a_row_of_zeros_finite_and_matters_for_tiny_rows() -> None:
    assert torch.equal(rms_norm(torch.zeros(2, 8), torch.ones(8), 1e-6), torch.zeros(2, 8))
    tiny = torch.full((1, 8), 1e-3)
    torch.testing.assert_close(rms_norm(tiny, torch.ones(8), 1e-6), torch.full((1, 8), 0.5**0.5))


@pytest.mark.parametrize("tokens", [1, 33])
def test_fused_add_updates_the_residual_in_place(tokens: int) -> None:
    x, residual, weight = torch.randn(tokens, 32), torch.randn(tokens, 32), torch.randn(32)
    total = x + residual
    result = fused_add_rms_norm(x, residual, weight, 1e-6)
    assert torch.equal(residual, total)
    torch.testing.assert_close(result.double(), reference(total, weight, 1e-6), rtol=1e-5, atol=1e-5)


def test_a_float32_weight_is_applied_before_rounding() -> None:
    x, weight = torch.randn(9, 64).bfloat16(), torch.randn(64)
    result = rms_norm(x, weight, 1e-6)
    expected = reference(x, weight, 1e-6)
    assert result.dtype == torch.bfloat16
    torch.testing.assert_close(result.double(), expected, rtol=2**-8, atol=1e-6)
