"""Int8 weights times int8 activations, against the formula in float64; the same code runs on a GPU."""

import pytest
import torch

from lightllm.ops.int8_activations import Int8Activations


def formula(
    x: torch.Tensor, codes: torch.Tensor, scales: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    s = x.float().abs().amax(1, keepdim=True) / 127
    out = (x.float() / s).round().double() @ codes.double().T * s * scales
    return out if bias is None else out + bias


@pytest.mark.parametrize("rows", [1, 17, 40])
@pytest.mark.parametrize(("outputs", "inputs"), [(48, 64), (37, 52)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_products_equal_the_formula(rows: int, outputs: int, inputs: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(rows)
    codes = torch.randint(-127, 128, (outputs, inputs), generator=generator, dtype=torch.int8)
    scales, bias = torch.rand(outputs, generator=generator), torch.randn(outputs, generator=generator)
    x = torch.randn(rows, inputs, generator=generator).to(dtype)
    found = Int8Activations(codes, scales, bias)(x)
    assert found.dtype == dtype
    torch.testing.assert_close(found, formula(x, codes, scales, bias).to(dtype))


def test_a_row_is_the_same_alone_and_among_others_and_zeros_stay_zeros() -> None:
    codes = torch.randint(-127, 128, (24, 40), dtype=torch.int8)
    linear = Int8Activations(codes, torch.rand(24), None)
    x = torch.cat((torch.randn(50, 40), torch.zeros(1, 40)))
    whole = linear(x)
    assert torch.equal(linear(x[7:8]), whole[7:8]) and not whole[50].any()
