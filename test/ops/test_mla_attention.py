"""Multi-head latent attention on a CPU against a loop over tokens in float64."""

from unittest import mock

import numpy as np
import pytest
import torch
from support.mla_cases import MlaCase

from lightllm.ops import attention_contexts, mla_attention
from lightllm.ops.attention_metadata import cut_lengths

ALONE, TOGETHER = 0, 1 << 30
"""Bytes of a context up to which it is copied to be computed beside others: none is, all are."""


def check(case: MlaCase, copied: int = ALONE, expanded: int = 1 << 30) -> None:
    cpu = torch.device("cpu")
    with mock.patch.object(attention_contexts, "PADDED_BYTES", copied):
        result = case.computed(mla_attention, case.slots.metadata(cpu), cpu, expanded)
    torch.testing.assert_close(result.double(), case.expected(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("layout", ["run", "shuffled"])
@pytest.mark.parametrize("copied", [ALONE, TOGETHER])
def test_decode_and_prefill_side_by_side(layout: str, copied: int) -> None:
    check(MlaCase([40, 1, 8, 7, 25, 33, 1], [1, 1, 1, 1, 25, 10, 1], 4, layout), copied)


@pytest.mark.parametrize("copied", [ALONE, TOGETHER])
def test_decode_entries_of_one_to_four_tokens(copied: int) -> None:
    check(MlaCase([40, 4, 9, 1, 25], [2, 4, 3, 1, 9], 4, "shuffled"), copied)


def test_long_chunks_are_computed_in_blocks_of_queries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lightllm.ops.mla_attention._SCORES", 1)
    check(MlaCase([60, 50], [40, 50], 0))


@pytest.mark.parametrize("expanded", [1, 40, 60, 100])
def test_contexts_may_be_expanded_some_at_a_time(expanded: int) -> None:
    check(MlaCase([9, 40, 25, 33, 1, 20], [1, 3, 25, 10, 1, 2], 1, "shuffled"), expanded=expanded)


@pytest.mark.parametrize("total", [1, 10, 16, 17, 1000])
def test_lengths_are_cut_into_neighbours_that_fit_together(total: int) -> None:
    lengths = np.array([3, 7, 6, 1, 1, 20, 9, 10])
    parts = [lengths[piece].tolist() for piece in cut_lengths(lengths, total)]
    assert [length for part in parts for length in part] == lengths.tolist()
    assert all(len(part) == 1 or sum(part) <= total for part in parts)
    assert all(sum(part) + after[0] > total for part, after in zip(parts, parts[1:]))
    assert cut_lengths(np.zeros(0, np.int64), total) == []
