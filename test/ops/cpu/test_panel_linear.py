"""Linear layers in panels: against float64, and that no row has a part in another's sums."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from lightllm.ops.cpu import panel_linear as module
from lightllm.ops.cpu.panel_linear import PanelLinear, panel_linear
from lightllm.ops.weight_rows import WeightRows, as_rows

BF16 = torch.bfloat16
ROWS = (0, 1, 2, 3, 4, 5, 6, 7, 11, 13, 19, 47, 48, 49, 97, 200)
SHAPES = [(64, 2), (64, 64), (1, 40), (200, 64), (389, 40), (130, 4100)]
"""Less than a panel, a whole one, some of the last; less and more inputs than are multiplied at a time."""


def packed(weight: torch.Tensor, bias: torch.Tensor | None = None) -> PanelLinear:
    layer = panel_linear(as_rows(weight), bias)
    if layer is None:
        pytest.skip("no kernel for this processor")
    return layer


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(BF16)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_no_error_is_larger_than_that_of_one_rounding(shape: tuple[int, int], bias: bool) -> None:
    weight, offset = random(*shape), random(shape[0], seed=1) if bias else None
    layer = packed(weight, offset)
    for rows in ROWS:
        x = random(rows, shape[1], seed=2)
        exact = F.linear(x.double(), weight.double(), None if offset is None else offset.double())
        result = layer(x)
        assert result.shape == exact.shape and result.dtype == BF16
        # Sums of products in float32, and one rounding to bfloat16 (8 bits).
        summed = x.double().abs() @ weight.double().abs().T * 2**-22
        assert bool(((result.double() - exact).abs() <= exact.abs() * 2**-8 + summed + 1e-30).all()), rows


@pytest.mark.parametrize("shape", SHAPES)
def test_a_row_has_the_same_bits_alone_and_among_others(shape: tuple[int, int]) -> None:
    layer, x = packed(random(*shape), random(shape[0])), random(200, shape[1], seed=3)
    whole = layer(x)
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            for rows in ROWS:
                assert torch.equal(layer(x[:rows]), whole[:rows])
                assert torch.equal(layer(x[200 - rows :]), whole[200 - rows :])
    finally:
        torch.set_num_threads(threads)


def test_rows_of_any_stride_and_columns_that_are_not_side_by_side() -> None:
    layer, wide = packed(random(70, 32)), random(9, 80, seed=4)
    expected = layer(wide[:, 5:37].contiguous())
    assert torch.equal(layer(wide[:, 5:37]), expected)
    assert torch.equal(layer(wide[:, 5:37].T.contiguous().T), expected)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_no_number_stays_in_its_row_and_its_output(value: float) -> None:
    weight, x = random(100, 32), random(8, 32, seed=5)
    expected = packed(weight)(x)
    x[3, 7] = value
    result = packed(weight)(x)
    assert not bool(result[3].isfinite().any())
    others = [row for row in range(8) if row != 3]
    assert torch.equal(result[others], expected[others])
    x = random(8, 32, seed=5)
    weight[70, 1] = value
    result = packed(weight)(x)
    assert not bool(result[:, 70].isfinite().any())
    outputs = [output for output in range(100) if output != 70]
    assert torch.equal(result[:, outputs], expected[:, outputs])


def test_a_weight_is_the_same_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, x = random(1000, 64), random(3, 64, seed=6)
    expected = packed(weight)(x)
    monkeypatch.setattr(module, "_PIECE_BYTES", 20000)
    assert torch.equal(packed(weight)(x), expected)
    parts = WeightRows([weight[:333], weight[333:]], BF16, torch.device("cpu"))
    layer = panel_linear(parts, None)
    assert layer is not None and torch.equal(layer(x), expected)
    assert layer.nbytes == 1024 * 64 * 2


def test_what_the_kernel_does_not_take_is_another_forms() -> None:
    packed(random(8, 4))
    for weight in (random(8, 5), random(8, 4).float(), random(8, 4).half(), random(0, 4)):
        assert panel_linear(as_rows(weight), None) is None


def test_other_inputs_are_refused() -> None:
    layer = packed(random(8, 4))
    for x in (random(3, 5), random(3, 4).float()):
        with pytest.raises(ValueError, match="bfloat16"):
            layer(x)
