"""Choosing tokens, against the plainest possible references."""

import numpy as np
import pytest
import torch
from support import broken_logits
from support.references import sample_filtered as reference_filtered

from lightllm.ops import sample
from lightllm.ops.sample import (
    sample_filtered,
    sample_greedy,
    sample_random,
    sample_rows,
    token_logprobs,
    top_logprobs,
)

VOCABS = [3, 128, 300, 1000]


def make_logits(rows, vocab, seed=0, ties=False):
    logits = torch.randn(rows, vocab, generator=torch.Generator().manual_seed(seed)) * 3
    return (logits * 2).round() / 2 if ties else logits


def scratch(logits):
    return torch.empty_like(logits)


@pytest.mark.parametrize("vocab", VOCABS)
def test_greedy_is_the_first_maximum_with_its_log_softmax(vocab):
    logits = make_logits(5, vocab, ties=True)
    token_ids, logprobs = sample_greedy(logits, scratch(logits))
    assert token_ids.tolist() == [row.index(max(row)) for row in logits.tolist()]
    expected = logits.log_softmax(1).gather(1, token_ids[:, None]).squeeze(1)
    torch.testing.assert_close(logprobs, expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("vocab", VOCABS)
def test_random_is_the_inverse_distribution_function_by_token_id(vocab):
    logits = make_logits(64, vocab)
    uniforms = torch.rand(64, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    token_ids, logprobs = sample_random(logits, uniforms, scratch(logits))
    sums = logits.double().softmax(1).cumsum(1)
    expected = (sums <= uniforms[:, None]).sum(1)
    close = (sums - uniforms[:, None]).abs().amin(1) < 1e-6
    assert (token_ids == expected)[~close].all()
    torch.testing.assert_close(
        logprobs, logits.log_softmax(1).gather(1, token_ids[:, None]).squeeze(1), atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize("uniform", [2.0**-33, 1 - 2.0**-33])
def test_random_at_the_ends_never_takes_an_impossible_token(uniform):
    logits = torch.full((1, 300), -torch.inf)
    logits[0, [7, 140, 290]] = torch.tensor([1.0, 0.0, -1.0])
    uniforms = torch.tensor([uniform], dtype=torch.float64)
    token_ids, _ = sample_random(logits, uniforms, scratch(logits))
    assert token_ids.tolist() == [7 if uniform < 0.5 else 290]


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize(
    "top_k,top_p,min_p",
    [
        (1, 1.0, 0.0),
        (5, 1.0, 0.0),
        (2**31, 0.5, 0.0),
        (2**31, 1.0, 0.05),
        (50, 0.9, 0.01),
        (2**31, 1e-6, 0.0),
    ],
)
def test_filtered_choice_equals_sort_cut_walk(top_k, top_p, min_p, ties):
    logits = make_logits(40, 300, seed=3, ties=ties)
    uniforms = torch.rand(40, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    token_ids, logprobs = sample_filtered(
        logits, uniforms, torch.full((40,), top_k), torch.full((40,), top_p, dtype=torch.float64),
        torch.full((40,), min_p, dtype=torch.float64), scratch(logits),
    )  # fmt: skip
    expected = [
        reference_filtered(row, u, top_k, top_p, min_p)
        for row, u in zip(logits.double().tolist(), uniforms.tolist())
    ]
    assert token_ids.tolist() == [token for token, _ in expected]
    np.testing.assert_allclose(logprobs.numpy(), [lp for _, lp in expected], atol=1e-5)


def test_filter_that_keeps_more_than_the_first_candidates_is_still_exact():
    logits = make_logits(6, 6000, seed=4) / 6
    uniforms = torch.linspace(0.05, 0.999, 6, dtype=torch.float64)
    top_k = torch.tensor([2**31, 2**31, 3000, 5, 2**31, 700])
    top_p = torch.tensor([0.99, 0.3, 1.0, 0.9, 0.9, 1.0], dtype=torch.float64)
    min_p = torch.tensor([0.0, 0.0, 0.0, 0.0, 0.2, 0.0], dtype=torch.float64)
    token_ids, _ = sample_filtered(logits, uniforms, top_k, top_p, min_p, scratch(logits))
    for i, row in enumerate(logits.double().tolist()):
        token, _ = reference_filtered(
            row, uniforms[i].item(), top_k[i].item(), top_p[i].item(), min_p[i].item()
        )
        assert token_ids[i] == token


def test_rows_do_not_influence_each_other():
    logits = make_logits(32, 1000, seed=5)
    uniforms = torch.rand(32, dtype=torch.float64, generator=torch.Generator().manual_seed(6))
    top_k = torch.arange(1, 33) * 30
    top_p = torch.linspace(0.1, 1.0, 32, dtype=torch.float64)
    min_p = torch.zeros(32, dtype=torch.float64)
    together, _ = sample_filtered(logits, uniforms, top_k, top_p, min_p, scratch(logits))
    for i in range(32):
        one = slice(i, i + 1)
        alone, _ = sample_filtered(
            logits[one], uniforms[one], top_k[one], top_p[one], min_p[one], scratch(logits[one])
        )
        assert alone[0] == together[i]


def test_every_row_is_chosen_as_it_says():
    logits = make_logits(9, 300, seed=8)
    uniforms = torch.rand(9, dtype=torch.float64)
    kinds, scales = torch.arange(9, dtype=torch.int32) % 3, 0.5 + torch.rand(9)
    top_k, top_p = torch.arange(9) + 1, torch.linspace(0.2, 1.0, 9, dtype=torch.float64)
    min_p = torch.zeros(9, dtype=torch.float64)
    chosen = sample_rows(logits, kinds, scales, uniforms, top_k, top_p, min_p, scratch(logits))
    scaled = logits * scales[:, None]
    expected = [
        sample_greedy(scaled, scratch(logits)),
        sample_random(scaled, uniforms, scratch(logits)),
        sample_filtered(scaled, uniforms, top_k, top_p, min_p, scratch(logits)),
    ]
    for row in range(9):
        assert chosen[0][row] == expected[row % 3][0][row] and chosen[1][row] == expected[row % 3][1][row]


def test_choices_follow_the_distribution():
    logits = torch.tensor([0.0, 1.0, 2.0, -1.0, 0.5])
    uniforms = torch.rand(20000, dtype=torch.float64, generator=torch.Generator().manual_seed(7))
    batch = logits.expand(20000, 5).contiguous()
    token_ids, _ = sample_random(batch, uniforms, scratch(batch))
    assert chi_square(token_ids, logits.softmax(0)) < 23.5  # 4 degrees of freedom, p = 0.0001
    token_ids, _ = sample_filtered(
        batch, uniforms, torch.full((20000,), 3), torch.ones(20000, dtype=torch.float64),
        torch.zeros(20000, dtype=torch.float64), scratch(batch),
    )  # fmt: skip
    expected = logits.softmax(0)
    expected[[0, 3]] = 0
    assert chi_square(token_ids, expected / expected.sum()) < 23.5


def chi_square(token_ids, expected):
    counts = torch.bincount(token_ids, minlength=len(expected)).double()
    expected = expected.double() * len(token_ids)
    assert counts[expected == 0].sum() == 0
    return (((counts - expected) ** 2)[expected > 0] / expected[expected > 0]).sum().item()


def test_log_probabilities_of_given_tokens():
    logits = make_logits(4, 300)
    token_ids = torch.tensor([0, 5, 299, 17])
    torch.testing.assert_close(
        token_logprobs(logits, token_ids), logits.log_softmax(1)[torch.arange(4), token_ids]
    )


def test_top_alternatives_are_sorted_by_probability_then_token_id():
    logits = torch.tensor([[1.0, 3.0, 3.0, 0.0, 2.0], [5.0, 4.0, 3.0, 2.0, 1.0]])
    token_ids, logprobs = top_logprobs(logits, 3)
    assert token_ids.tolist() == [[1, 2, 4], [0, 1, 2]]
    torch.testing.assert_close(logprobs, logits.log_softmax(1).gather(1, token_ids))


@pytest.mark.usefixtures("implementation")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_lowest_of_equal_logits_is_taken_of_every_dtype(dtype: torch.dtype) -> None:
    for size in (1, 3, 512, 513, 5000):
        logits = torch.randint(-9, 9, (7, size)).to(dtype)
        logits[0] = -0.0
        logits[0, size // 2] = 0.0
        logits[1] = -1e4
        logits[1, -1] = -9e3
        token_ids, logprobs = sample.greedy_tokens(logits)
        assert token_ids.tolist() == logits.float().numpy().argmax(1).tolist() and not logprobs.any()
        logits[2, 0], logits[2, -1] = float("inf"), -float("nan")
        logits[3] = -float("inf")
        token_ids, logprobs = sample.greedy_tokens(logits)
        assert token_ids[2:4].tolist() == [size - 1, 0]
        assert logprobs.isnan().tolist() == [False, False, True, True, False, False, False]


@pytest.mark.usefixtures("implementation")
@pytest.mark.parametrize("vocab", VOCABS)
@pytest.mark.parametrize("name", broken_logits.BROKEN)
def test_logits_that_are_no_numbers_are_seen_in_their_row_alone(name, vocab):
    broken_logits.check(sample, [name] * 3, vocab)
