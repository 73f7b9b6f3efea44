"""The embedding gather: whole tables, parts of a vocabulary, and rows beyond 2^31 elements."""

import pytest
import torch
from support.kernels import DEVICE, DTYPES

from lightllm.ops.triton.embedding import embedding


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("hidden", [1, 40, 1030])
def test_rows_are_picked_as_they_are(hidden: int, dtype: torch.dtype) -> None:
    weight = torch.randn(50, hidden).to(DEVICE, dtype)
    ids = torch.tensor([49, 0, 7, 7, *range(29)], device=DEVICE)
    assert torch.equal(embedding(ids, weight), weight[ids])
    assert torch.equal(embedding(ids[:1], weight), weight[49:])
    assert embedding(ids[:0], weight).shape == (0, hidden)


def test_tokens_of_other_ranks_are_zero() -> None:
    weight = torch.randn(10, 24, device=DEVICE)
    ids = torch.tensor([19, 20, 29, 30, 0, 2**31], device=DEVICE)
    result = embedding(ids, weight, first_id=20)
    assert torch.equal(result[1:3], weight[[0, 9]]) and not result[[0, 3, 4, 5]].any()


@pytest.mark.parametrize("id_dtype", [torch.int32, torch.int64])
def test_rows_whose_offset_needs_64_bits(id_dtype: torch.dtype) -> None:
    weight = torch.empty(300_001, 8192, dtype=torch.float16, device=DEVICE)
    weight[300_000] = 3.0
    result = embedding(torch.tensor([300_000], dtype=id_dtype, device=DEVICE), weight[:, :16])
    assert torch.equal(result, torch.full((1, 16), 3.0, dtype=torch.float16, device=DEVICE))
