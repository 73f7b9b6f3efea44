"""Linear layers of weights that are widened in registers: against float64, and that no row has a part in another's sums."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from support.quantized_weights import random_weight

from lightllm.ops.cpu.calls.widened_linear import ELEMENTS
from lightllm.ops.cpu.widened_linear import WidenedLinear, widened_linear
from lightllm.ops.quantized_linear import DequantisedOnUse, memory_of_codes, pack_quantized
from lightllm.ops.quantized_weight import QuantizedWeight

ROWS = (0, 1, 2, 3, 4, 5, 7, 12, 95, 96, 97, 200)
Case = tuple[str, int, int, int, bool]
CASES: list[Case] = [
    ("int8", 200, 256, 128, False),
    ("int8", 64, 96, 32, True),
    ("int8", 1, 40, 40, True),
    ("int8", 130, 2100, 2100, False),
    ("int4", 389, 512, 128, True),
    ("int4", 200, 256, 256, False),
    ("int4", 64, 64, 64, True),
    ("int4", 70, 360, 360, True),
    ("int4", 70, 30, 30, False),
    ("e2m1", 130, 96, 32, False),
    ("e2m1", 300, 512, 32, False),
    ("e4m3", 130, 256, 128, False),
    ("e4m3", 33, 1001, 1001, False),
    ("e4m3", 300, 136, 8, False),
]
"""Element, outputs, inputs, inputs that share a scale, whether there are zeros: less than a panel, whole ones, some of the last;
inputs that end within a block or a step."""
DTYPES = (torch.float32, torch.bfloat16)
OF_BOTH = [(case, dtype) for case in CASES for dtype in DTYPES[: 2 if case[0] == "e4m3" else 1]]


def random(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def packed(weight: QuantizedWeight, dtype: torch.dtype, bias: torch.Tensor | None = None) -> WidenedLinear:
    layer = widened_linear(weight, bias, dtype)
    if layer is None:
        pytest.skip("no kernel for this processor, or others are better")
    return layer


def check(
    weight: QuantizedWeight, x: torch.Tensor, result: torch.Tensor, bias: torch.Tensor | None = None
) -> None:
    """Numbers are exact: what is off are sums of a block in float32 (so of what zeros take away from it), and the rounding of the
    result."""
    dense = weight.dense(torch.float32).double()
    exact = F.linear(x.double(), dense, None if bias is None else bias.double())
    assert result.shape == exact.shape and result.dtype == x.dtype
    largest = weight.scales.float().amax(-1).double() * (256 if weight.element in ("int8", "int4") else 0)
    if weight.scale_rows is not None:
        largest = largest[weight.scale_rows]
    summed = x.double().abs() @ (dense.abs() + largest[:, None]).T * 2**-20
    last = exact.abs() * (2**-8 if x.dtype == torch.bfloat16 else 2**-23)
    assert bool(((result.double() - exact).abs() <= last + summed + 1e-30).all())


@pytest.mark.parametrize("case, dtype", OF_BOTH)
def test_no_error_is_larger_than_roundings_explain(case: Case, dtype: torch.dtype) -> None:
    weight = random_weight(*case)
    for bias in (None, random(case[1], seed=1).to(dtype)):
        layer = packed(weight, dtype, bias)
        for rows in ROWS:
            x = random(rows, case[2], dtype=dtype, seed=2)
            check(weight, x, layer(x), bias)


@pytest.mark.parametrize("case, dtype", OF_BOTH)
def test_a_row_has_the_same_bits_alone_and_among_others(case: Case, dtype: torch.dtype) -> None:
    layer, x = packed(random_weight(*case), dtype), random(200, case[2], dtype=dtype, seed=3)
    whole, threads = layer(x), torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            for rows in ROWS:
                assert torch.equal(layer(x[:rows]), whole[:rows])
                assert torch.equal(layer(x[200 - rows :]), whole[200 - rows :])
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize(
    "element, dtype", [(element, torch.float32) for element in ELEMENTS] + [("e4m3", torch.bfloat16)]
)
def test_every_code_stands_for_its_number(element: str, dtype: torch.dtype) -> None:
    codes = torch.arange(256, dtype=torch.uint8)[:, None].repeat(1, 8)
    kinds = {"int8": torch.int8, "e4m3": torch.float8_e4m3fn}
    if element == "e4m3":
        codes[codes & 127 == 127] = 0
    weight = QuantizedWeight(
        element, codes.view(kinds.get(element, torch.uint8)), torch.ones(256, 1), None, 8
    )
    layer, inputs = packed(dataclasses.replace(weight, group=weight.shape[1]), dtype), weight.shape[1]
    for rows in (inputs, 2):
        x = torch.eye(inputs, dtype=dtype)[:rows]
        assert torch.equal(layer(x), weight.dequantise(0, 256).T[:rows].to(dtype))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_no_number_stays_in_its_row(dtype: torch.dtype, value: float) -> None:
    weight, x = random_weight("e4m3", 100, 256, 128, False), random(8, 256, dtype=dtype, seed=5)
    expected = packed(weight, dtype)(x)
    x[3, 7] = value
    result = packed(weight, dtype)(x)
    assert not bool(result[3].isfinite().any()) or not bool(weight.dense(torch.float32)[:, 7].all())
    others = [row for row in range(8) if row != 3]
    assert torch.equal(result[others], expected[others])


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_of_any_stride_and_columns_that_are_not_side_by_side(dtype: torch.dtype) -> None:
    layer, wide = packed(random_weight("e4m3", 70, 33, 33, False), dtype), random(9, 80, dtype=dtype, seed=6)
    expected = layer(wide[:, 5:38].contiguous())
    assert torch.equal(layer(wide[:, 5:38]), expected)
    assert torch.equal(layer(wide[:, 5:38].T.contiguous().T), expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_inputs_in_another_order_and_scales_of_some_outputs_together(dtype: torch.dtype) -> None:
    weight = random_weight("e4m3", 96, 128, 32, False)
    x = random(5, 128, dtype=dtype, seed=7)
    shared = dataclasses.replace(
        weight,
        scales=weight.scales[:3],
        scale_rows=torch.arange(96).int() // 32,
        inputs=torch.randperm(128, generator=torch.Generator().manual_seed(1)),
    )
    check(shared, x, packed(shared, dtype)(x))


@pytest.mark.parametrize(
    "case",
    [
        ("int4", 389, 512, 128, True),
        ("int8", 130, 384, 128, False),
        ("e4m3", 130, 384, 128, False),
        ("e4m3", 33, 101, 101, False),
    ],
)
def test_a_weight_in_memory_of_whole_panels_is_arranged_where_it_lies(case: Case) -> None:
    weight, x = random_weight(*case), random(5, case[2], seed=8)
    expected = packed(weight, x.dtype)(x)
    codes = memory_of_codes(case[0], case[1], case[2], torch.device("cpu"))
    codes.view(torch.uint8).copy_(weight.codes.view(torch.uint8))
    layer = widened_linear(dataclasses.replace(weight, codes=codes), None, x.dtype, in_place=True)
    assert layer is not None and torch.equal(layer(x), expected)
    assert (layer.codes.data_ptr() == codes.data_ptr()) == (case[2] % 128 == 0)


def test_what_the_kernel_does_not_take_is_another_forms() -> None:
    weight = random_weight("int8", 64, 64, 32, False)
    layer = packed(weight, torch.float32)
    assert widened_linear(weight, None, torch.bfloat16) is None  # products of codes are faster there
    grouped = dataclasses.replace(weight, group_of=torch.arange(64).int() // 32)
    assert widened_linear(grouped, None, torch.float32) is None
    assert widened_linear(random_weight("int8", 64, 60, 20, False), None, torch.float32) is None
    floats = random_weight("e4m3", 64, 64, 32, False)
    floats.codes.view(torch.uint8)[5, 3] = 255  # no number
    assert isinstance(pack_quantized(floats, None, torch.float32), DequantisedOnUse)
    for x in (random(3, 32), random(3, 64).double()):
        with pytest.raises(ValueError, match="float32"):
            layer(x)
