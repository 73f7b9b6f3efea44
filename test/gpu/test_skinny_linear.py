"""Linear layers for few rows at real sizes, against the formula in float64, on memory that was poisoned."""

from __future__ import annotations

import pytest
import torch

from lightllm.ops.triton.skinny_linear import linear_add_, norm_linear, norm_swiglu, workspace

pytestmark = pytest.mark.usefixtures("poisoned")
CUDA, DTYPE, TOLERANCE = torch.device("cuda"), torch.bfloat16, 1e-2


def error(out: torch.Tensor, reference: torch.Tensor) -> float:
    return float((out.double() - reference).norm() / reference.norm())


@pytest.mark.parametrize("rows", [1, 16, 17, 32])
@pytest.mark.parametrize(
    ("inner", "size"), [(4096, 6144), (4096, 28672), (14336, 4096), (1024, 3072), (5120, 34816)]
)
def test_each_form_equals_the_formula_again_and_again(
    generator: torch.Generator, rows: int, inner: int, size: int
) -> None:
    x = torch.randn(rows, inner, device=CUDA, generator=generator).to(DTYPE)
    norm = torch.randn(inner, device=CUDA, generator=generator).to(DTYPE)
    weight = (torch.randn(size, inner, device=CUDA, generator=generator) * inner**-0.5).to(DTYPE)
    residual = torch.randn(rows, size, device=CUDA, generator=generator).to(DTYPE)
    wide = x.double()
    normed = wide * (wide.square().mean(-1, keepdim=True) + 1e-5).rsqrt() * norm.double()
    product = normed @ weight.double().T
    gate, up = product.chunk(2, -1)
    found = []
    for _ in range(20):
        total = residual.clone()
        linear_add_(x, weight, None, total)
        found.append(
            (norm_linear(x, norm, 1e-5, weight, None), norm_swiglu(x, norm, 1e-5, weight, None), total)
        )
    expected = (product, gate.sigmoid() * gate * up, residual.double() + wide @ weight.double().T)
    assert all(error(out, reference) < TOLERANCE for out, reference in zip(found[0], expected, strict=True))
    assert all(torch.equal(out, first) for each in found for out, first in zip(each, found[0], strict=True))
    assert not workspace(x.device).arrived.any()
