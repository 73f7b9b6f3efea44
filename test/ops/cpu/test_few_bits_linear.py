"""Linear layers of weights in few bits: against float64, and that no row has a part in another's sums."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from support.quantized_weights import random_weight

from lightllm.ops.cpu.few_bits_linear import FewBitsLinear, few_bits_linear
from lightllm.ops.quantized_linear import DequantisedOnUse, memory_of_codes
from lightllm.ops.quantized_weight import QuantizedWeight

ROWS = (0, 1, 2, 3, 7, 95, 96, 97, 200)
CASES = [
    ("int8", 200, 256, 128, False),
    ("int8", 64, 96, 32, True),
    ("int8", 1, 40, 40, True),
    ("int8", 130, 4100, 4100, False),
    ("int4", 389, 1024, 128, True),
    ("int4", 200, 256, 256, False),
    ("int4", 64, 64, 64, True),
    ("int4", 70, 360, 360, True),
    ("e2m1", 130, 96, 32, False),
]
"""Element, outputs, inputs, inputs that share a scale, whether there are zeros: less than a panel, whole ones, some of the last;
inputs that end within a block."""


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).bfloat16()


def packed(weight: QuantizedWeight, bias: torch.Tensor | None = None) -> FewBitsLinear:
    layer = few_bits_linear(weight, bias)
    if layer is None:
        pytest.skip("no kernel for this processor")
    return layer


def check(
    weight: QuantizedWeight, x: torch.Tensor, result: torch.Tensor, bias: torch.Tensor | None = None
) -> None:
    """Inputs are off by at most 2**-16 of a block's largest; sums are rounded to float32, the result to bfloat16."""
    dense = weight.dense(torch.float32).double()
    exact = F.linear(x.double(), dense, None if bias is None else bias.double())
    assert result.shape == exact.shape and result.dtype == torch.bfloat16
    largest = x.double().abs().amax(1, keepdim=True) * 2**-16 @ dense.abs().sum(1, keepdim=True).T
    summed = x.double().abs() @ dense.abs().T * 2**-20
    assert bool(((result.double() - exact).abs() <= exact.abs() * 2**-8 + largest + summed + 1e-30).all())


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_no_error_is_larger_than_roundings_explain(case: tuple[str, int, int, int, bool], bias: bool) -> None:
    weight, offset = random_weight(*case), random(case[1], seed=1) if bias else None
    layer = packed(weight, offset)
    for rows in ROWS:
        x = random(rows, case[2], seed=2)
        check(weight, x, layer(x), offset)


@pytest.mark.parametrize("case", CASES)
def test_a_row_has_the_same_bits_alone_and_among_others(case: tuple[str, int, int, int, bool]) -> None:
    layer, x = packed(random_weight(*case), random(case[1])), random(200, case[2], seed=3)
    whole, threads = layer(x), torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            for rows in ROWS:
                assert torch.equal(layer(x[:rows]), whole[:rows])
                assert torch.equal(layer(x[200 - rows :]), whole[200 - rows :])
    finally:
        torch.set_num_threads(threads)


def test_an_input_that_is_far_larger_than_others_spoils_its_block_alone() -> None:
    weight = random_weight("int4", 64, 512, 128, True)
    x = random(3, 512, seed=4)
    expected = packed(weight)(x)
    x[1, 130] = 1000.0
    check(weight, x, packed(weight)(x))
    assert torch.equal(packed(weight)(x)[[0, 2]], expected[[0, 2]])
    for value in (0.0, 1e-38, 3e38):  # nothing, and what lies at the ends of float32
        x[1] = value
        result = packed(weight)(x)
        assert bool(result[1].isfinite().all()) or value > 1
        assert torch.equal(result[[0, 2]], expected[[0, 2]])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_no_number_stays_in_its_row(value: float) -> None:
    weight, x = random_weight("int8", 100, 256, 128, True), random(8, 256, seed=5)
    expected = packed(weight)(x)
    x[3, 7] = value
    result = packed(weight)(x)
    assert not bool(result[3].isfinite().any())
    others = [row for row in range(8) if row != 3]
    assert torch.equal(result[others], expected[others])


def test_rows_of_any_stride_and_columns_that_are_not_side_by_side() -> None:
    layer, wide = packed(random_weight("int4", 70, 32, 32, False)), random(9, 80, seed=6)
    expected = layer(wide[:, 5:37].contiguous())
    assert torch.equal(layer(wide[:, 5:37]), expected)
    assert torch.equal(layer(wide[:, 5:37].T.contiguous().T), expected)


def test_inputs_in_another_order_and_scales_of_some_outputs_together() -> None:
    weight, x = random_weight("int8", 96, 128, 32, True), random(5, 128, seed=7)
    assert weight.zeros is not None
    order = torch.randperm(128, generator=torch.Generator().manual_seed(1))
    shared = dataclasses.replace(
        weight,
        scales=weight.scales[:3],
        zeros=weight.zeros[:3],
        scale_rows=torch.arange(96).int() // 32,
        inputs=order,
    )
    check(shared, x, packed(shared)(x))
    assert torch.equal(shared.dense(torch.float32)[:, order], shared.dequantise(0, 96))


@pytest.mark.parametrize(
    "case", [("int4", 389, 1024, 128, True), ("int8", 130, 384, 128, False), ("int8", 130, 4100, 4100, False)]
)
def test_a_weight_in_memory_of_whole_panels_is_arranged_where_it_lies(
    case: tuple[str, int, int, int, bool],
) -> None:
    weight, x = random_weight(*case), random(5, case[2], seed=8)
    expected, codes = packed(weight)(x), memory_of_codes(case[0], case[1], case[2], torch.device("cpu"))
    codes.copy_(weight.codes)
    layer = few_bits_linear(dataclasses.replace(weight, codes=codes), None, in_place=True)
    assert layer is not None and torch.equal(layer(x), expected)
    assert (layer.codes.data_ptr() == codes.data_ptr()) == (case[2] % 128 == 0)


def test_what_the_kernel_does_not_take_is_another_forms() -> None:
    weight = random_weight("int8", 64, 64, 32, False)
    packed(weight)
    assert few_bits_linear(dataclasses.replace(weight, group_of=torch.arange(64).int() // 32), None) is None
    assert few_bits_linear(random_weight("int8", 64, 60, 20, False), None) is None
    floats = QuantizedWeight("e4m3", torch.ones(8, 8).to(torch.float8_e4m3fn), torch.ones(8, 1), None, 8)
    assert few_bits_linear(floats, None) is None
    for x in (random(3, 32), random(3, 64).float()):
        with pytest.raises(ValueError, match="bfloat16"):
            packed(weight)(x)


@pytest.mark.parametrize("case", CASES)
def test_the_torch_form_is_that_of_the_dense_weight(case: tuple[str, int, int, int, bool]) -> None:
    weight, bias = random_weight(*case), random(case[1], seed=1).float()
    x = random(5, case[2], seed=2).float()
    expected = F.linear(x, weight.dense(torch.float32), bias)
    torch.testing.assert_close(DequantisedOnUse(weight, bias)(x), expected, rtol=1e-5, atol=1e-4)
