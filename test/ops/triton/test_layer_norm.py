"""The LayerNorm kernel against the formula in float64."""

import pytest
import torch
from support.kernels import DEVICE, DTYPES, assert_close
from support.references import layer_norm as reference

from lightllm.ops.triton.layer_norm import fused_add_layer_norm, layer_norm


def random(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return (torch.randn(shape) * 3 + 1).to(DEVICE, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("shape", [(1, 64), (33, 96), (3, 129), (0, 64), (2, 4544)])
def test_layer_norm_equals_the_formula(shape: tuple[int, ...], with_bias: bool, dtype: torch.dtype) -> None:
    x, weight = random(*shape, dtype=dtype), random(shape[-1], dtype=dtype)
    bias = random(shape[-1], dtype=dtype) if with_bias else None
    result = layer_norm(x, weight, bias, 1e-5)
    assert result.dtype == dtype
    assert_close(result, reference(x, weight, bias, 1e-5))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [1, 1536, 2048, 6144, 8192, 12288, 14336])
def test_every_width_of_models(size: int, dtype: torch.dtype) -> None:
    x, weight, bias = random(33, size, dtype=dtype), random(size, dtype=dtype), random(size, dtype=dtype)
    assert_close(layer_norm(x, weight, bias, 1e-5), reference(x, weight, bias, 1e-5))


@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("heads", [1, 8, 71])
def test_each_head_may_have_its_own_weight_and_the_input_may_be_a_slice(heads: int, with_bias: bool) -> None:
    whole = random(3, heads + 5, 24)
    x, weight, before = whole[:, 2 : 2 + heads], random(heads, 24), whole.clone()
    bias = random(heads, 24) if with_bias else None
    assert_close(layer_norm(x, weight, bias, 1e-6), reference(x, weight, bias, 1e-6))
    assert torch.equal(whole, before)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tokens", [0, 1, 33])
def test_fused_add_updates_the_residual_in_place(tokens: int, dtype: torch.dtype) -> None:
    x, residual = random(tokens, 96, dtype=dtype), random(tokens, 96, dtype=dtype)
    weight, bias, total = random(96, dtype=dtype), random(96, dtype=dtype), x + residual
    result = fused_add_layer_norm(x, residual, weight, bias, 1e-6)
    assert torch.equal(residual, total)
    assert_close(result, reference(total, weight, bias, 1e-6))
