"""The linear layer for few rows, with its norm, its gate and its residual, against the formula in float64."""

import pytest
import torch
from support.kernels import DEVICE, DTYPES, assert_close
from support.references import rms_norm as reference_norm

from lightllm.ops.triton import skinny_linear
from lightllm.ops.triton.skinny_linear import linear_add_, norm_linear, norm_swiglu, part_steps

EPS = 1e-5


def random(*shape: int, dtype: torch.dtype, scale: float = 1.0) -> torch.Tensor:
    return (torch.randn(shape) * scale).to(DEVICE, dtype)


def layer(rows: int, size: int, inner: int, dtype: torch.dtype, biased: bool):
    """x, norm, weight, bias"""
    x, norm = random(rows, inner, dtype=dtype, scale=3.0), random(inner, dtype=dtype)
    weight = random(size, inner, dtype=dtype, scale=inner**-0.5)
    return x, norm, weight, random(size, dtype=dtype) if biased else None


def product(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    return x.double() @ weight.double().T + (0 if bias is None else bias.double())


@pytest.fixture(params=[1, 200], ids=["few multiprocessors", "many"])
def num_sms(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Of many every tile is cut into parts."""
    monkeypatch.setattr(skinny_linear, "sm_count", lambda device: request.param)
    return request.param


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("rows", "size", "inner", "biased"), [(1, 96, 640, False), (17, 70, 1100, True), (32, 64, 520, False), (0, 64, 64, True)]
)  # fmt: skip
def test_a_norm_before_the_product(
    num_sms: int, rows: int, size: int, inner: int, biased: bool, dtype: torch.dtype
) -> None:
    x, norm, weight, bias = layer(rows, size, inner, dtype, biased)
    expected = product(reference_norm(x, norm, EPS), weight, bias)
    assert_close(norm_linear(x, norm, EPS, weight, bias), expected, factor=4)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "size", "inner", "biased"), [(3, 70, 640, True), (17, 32, 1100, False)])
def test_a_gate_behind_it(
    num_sms: int, rows: int, size: int, inner: int, biased: bool, dtype: torch.dtype
) -> None:
    x, norm, weight, bias = layer(rows, 2 * size, inner, dtype, biased)
    gate, up = product(reference_norm(x, norm, EPS), weight, bias).chunk(2, -1)
    assert_close(norm_swiglu(x, norm, EPS, weight, bias), gate.sigmoid() * gate * up, factor=4)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "size", "inner", "biased"), [(1, 70, 640, True), (20, 96, 300, False)])
def test_the_residual_is_added_to_in_place(
    num_sms: int, rows: int, size: int, inner: int, biased: bool, dtype: torch.dtype
) -> None:
    x, _, weight, bias = layer(rows, size, inner, dtype, biased)
    wide = random(rows, size + 8, dtype=dtype)
    before, residual = wide.clone(), wide[:, :size]
    linear_add_(x, weight, bias, residual)
    assert_close(residual, before[:, :size].double() + product(x, weight, bias), factor=4)
    assert torch.equal(wide[:, size:], before[:, size:])


def test_parts_are_added_up_in_their_order_and_counters_are_left_as_they_were_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(skinny_linear, "sm_count", lambda device: 200)
    x, norm, weight, _ = layer(5, 96, 1100, torch.float32, False)
    first = norm_linear(x, norm, EPS, weight, None)
    assert all(torch.equal(norm_linear(x, norm, EPS, weight, None), first) for _ in range(3))
    assert not skinny_linear.workspace(DEVICE).arrived.any()
    assert torch.equal(norm_linear(x[2:3], norm, EPS, weight, None), first[2:3])


@pytest.mark.parametrize("size", [64, 1024, 4096, 6144, 28672, 128256])
@pytest.mark.parametrize("inner", [64, 1000, 4096, 14336])
def test_parts_cover_the_weight_and_find_room(size: int, inner: int) -> None:
    config = {"BLOCK_N": 64, "BLOCK_K": 128}
    part = part_steps(size, inner, config, 132) * 128
    tiles, parts = -(-size // 64), -(-inner // part)
    assert parts * part >= inner and (parts - 1) * part < inner
    assert parts == 1 or (tiles * parts <= min(skinny_linear.MAX_TILES, 3 * 132) and part >= 4 * 128)
