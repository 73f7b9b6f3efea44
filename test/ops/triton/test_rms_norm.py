"""The RMSNorm kernels against the formula in float64."""

import pytest
import torch
from support.kernels import DEVICE, DTYPES, assert_close
from support.references import rms_norm as reference

from lightllm.ops.triton.rms_norm import fused_add_rms_norm, rms_norm


def random(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return (torch.randn(shape) * 3).to(DEVICE, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 64), (33, 96), (3, 129), (0, 64), (5, 7, 96), (2, 8192)])
def test_rms_norm_equals_the_formula(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x, weight = random(*shape, dtype=dtype), random(shape[-1], dtype=dtype)
    result = rms_norm(x, weight, 1e-5)
    assert result.dtype == dtype and result.shape == x.shape
    assert_close(result, reference(x, weight, 1e-5))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [1, 576, 1536, 2560, 3584, 5120, 12288, 16384, 20480])
def test_every_width_of_models(size: int, dtype: torch.dtype) -> None:
    x, weight = random(33, size, dtype=dtype), random(size, dtype=dtype)
    assert_close(rms_norm(x, weight, 1e-5), reference(x, weight, 1e-5))
    residual = random(33, size, dtype=dtype)
    total = x + residual
    assert_close(fused_add_rms_norm(x, residual, weight, 1e-5), reference(total, weight, 1e-5))
    assert torch.equal(residual, total)


@pytest.mark.parametrize("heads", [1, 8, 71])
def test_each_head_may_have_its_own_weight_and_the_input_may_be_a_slice(heads: int) -> None:
    whole = random(4, heads + 5, 16)
    x, weight, before = whole[:, 2 : 2 + heads], random(heads, 16), whole.clone()
    assert_close(rms_norm(x, weight, 1e-6), reference(x, weight, 1e-6))
    assert torch.equal(whole, before)


def test_columns_of_a_wider_tensor_are_normalised_alone() -> None:
    x = random(5, 80)[:, 16:64]
    assert_close(
        rms_norm(x, random(48) * 0 + 2, 1e-6), reference(x, torch.full((48,), 2.0, device=DEVICE), 1e-6)
    )


def test_a_float32_weight_is_applied_before_rounding() -> None:
    x, weight = random(3, 64, dtype=torch.float16), random(64)
    assert_close(rms_norm(x, weight, 1e-6), reference(x, weight, 1e-6), factor=0.5)


def test_eps_keeps_a_row_of_zeros_finite_and_matters_for_tiny_rows() -> None:
    ones = torch.ones(8, device=DEVICE)
    assert torch.equal(rms_norm(ones.expand(2, 8) * 0, ones, 1e-6), ones.expand(2, 8) * 0)
    tiny = rms_norm(torch.full((1, 8), 1e-3, device=DEVICE), ones, 1e-6)
    assert_close(tiny.cpu(), torch.full((1, 8), 0.5**0.5))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tokens", [0, 1, 33])
def test_fused_add_updates_the_residual_in_place(tokens: int, dtype: torch.dtype) -> None:
    x, residual, weight = (
        random(tokens, 96, dtype=dtype),
        random(tokens, 96, dtype=dtype),
        random(96, dtype=dtype),
    )
    total = x + residual
    result = fused_add_rms_norm(x, residual, weight, 1e-6)
    assert torch.equal(residual, total)
    assert_close(result, reference(total, weight, 1e-6))
