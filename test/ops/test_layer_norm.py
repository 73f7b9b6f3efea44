"""LayerNorm against the formula in float64."""

import pytest
import torch
from support.references import layer_norm as reference

from lightllm.ops.layer_norm import fused_add_layer_norm, layer_norm

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1.6e-2, torch.float16: 2e-3}


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("shape", [(1, 64), (33, 96), (0, 64)])
def test_layer_norm_equals_the_formula(shape: tuple[int, ...], with_bias: bool, dtype: torch.dtype) -> None:
    x, weight = (torch.randn(shape) * 3 + 1).to(dtype), (torch.randn(shape[-1]) + 1).to(dtype)
    bias = torch.randn(shape[-1]).to(dtype) if with_bias else None
    result, tolerance = layer_norm(x, weight, bias, 1e-5), TOLERANCE[dtype]
    assert result.dtype == dtype
    expected = reference(x, weight, bias, 1e-5)
    torch.testing.assert_close(result.double(), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("with_bias", [False, True])
def test_each_head_may_have_its_own_weight_and_the_input_may_be_a_slice(with_bias: bool) -> None:
    x, weight = torch.randn(4, 9, 16)[:, 2:7], torch.randn(5, 16)
    bias = torch.randn(5, 16) if with_bias else None
    result, before = layer_norm(x, weight, bias, 1e-6), x.clone()
    torch.testing.assert_close(result.double(), reference(x, weight, bias, 1e-6), rtol=1e-5, atol=1e-5)
    assert torch.equal(x, before)


def test_fused_add_updates_the_residual_in_place() -> None:
    x, residual, weight, bias = torch.randn(5, 32), torch.randn(5, 32), torch.randn(32), torch.randn(32)
    total = x + residual
    result = fused_add_layer_norm(x, residual, weight, bias, 1e-6)
    assert torch.equal(residual, total)
    torch.testing.assert_close(result.double(), reference(total, weight, bias, 1e-6), rtol=1e-5, atol=1e-5)
