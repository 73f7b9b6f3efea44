"""Attention inside segments equals softmax over all keys with those of other segments masked out."""

import pytest
import torch

from lightllm.ops.segment_attention import segment_attention


def masked(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, lengths: list[int], kv_lengths: list[int], scale: float
) -> torch.Tensor:
    own, others = (
        torch.arange(len(each)).repeat_interleave(torch.tensor(each)) for each in (lengths, kv_lengths)
    )
    scores = torch.einsum("thd,khd->htk", q, k) * scale
    scores = scores.masked_fill(own[:, None] != others, float("-inf"))
    return torch.einsum("htk,khd->thd", scores.softmax(-1), v)


@pytest.mark.parametrize("lengths", [[7], [3, 3, 3], [5, 1, 1, 9, 2, 2]])
@pytest.mark.parametrize("more_keys", [False, True])
def test_a_query_sees_the_keys_of_its_own_segment_alone(lengths: list[int], more_keys: bool) -> None:
    torch.manual_seed(0)
    kv_lengths = [2 * length + 1 for length in lengths] if more_keys else lengths
    q = torch.randn(sum(lengths), 3, 8)
    k, v = torch.randn(sum(kv_lengths), 3, 16).chunk(2, dim=-1)  # views with other strides
    result = segment_attention(q, k, v, lengths, 0.3, kv_lengths if more_keys else None)
    torch.testing.assert_close(result, masked(q, k, v, lengths, kv_lengths, 0.3))
