"""The sampling kernels against the plainest references: the same choices as sort, cut and walk."""

import math

import numpy as np
import pytest
import torch
from support import broken_logits
from support.kernels import DEVICE
from support.references import sample_filtered as reference_filtered

from lightllm.ops.triton import sample
from lightllm.ops.triton.sample import (
    greedy_tokens,
    sample_filtered,
    sample_greedy,
    sample_random,
    sample_rows,
)

VOCABS = [3, 300, 2050]
NO_LIMIT = 2**31
FILTERS = [
    (1, 1.0, 0.0),
    (5, 1.0, 0.0),
    (NO_LIMIT, 0.5, 0.0),
    (NO_LIMIT, 1.0, 0.05),
    (50, 0.9, 0.01),
    (NO_LIMIT, 1e-6, 0.0),
    (NO_LIMIT, 1.0, 1.0),
    (299, 0.999, 0.0),
]


def make_logits(rows: int, vocab: int, ties: bool = False) -> torch.Tensor:
    logits = torch.randn(rows, vocab) * 3
    return ((logits * 2).round() / 2 if ties else logits).to(DEVICE)


def numbers(count: int) -> torch.Tensor:
    return torch.rand(count, dtype=torch.float64).to(DEVICE)


def filters(rows: int, top_k: int, top_p: float, min_p: float) -> list[torch.Tensor]:
    return [
        torch.full((rows,), top_k, device=DEVICE),
        torch.full((rows,), top_p, dtype=torch.float64, device=DEVICE),
        torch.full((rows,), min_p, dtype=torch.float64, device=DEVICE),
    ]


def expected_filtered(
    logits: torch.Tensor, uniforms: torch.Tensor, top_k: int, top_p: float, min_p: float
) -> list[tuple[int, float]]:
    rows = logits.double().tolist()
    return [reference_filtered(row, u, top_k, top_p, min_p) for row, u in zip(rows, uniforms.tolist())]


@pytest.mark.parametrize("vocab", VOCABS)
def test_greedy_is_the_first_maximum_with_its_log_softmax(vocab: int) -> None:
    logits = make_logits(5, vocab, ties=True)
    token_ids, logprobs = sample_greedy(logits, torch.empty_like(logits))
    assert token_ids.tolist() == [row.index(max(row)) for row in logits.tolist()]
    expected = logits.log_softmax(1).gather(1, token_ids[:, None]).squeeze(1)
    torch.testing.assert_close(logprobs, expected, atol=1e-6, rtol=1e-5)
    assert torch.equal(greedy_tokens(logits)[0], token_ids)


@pytest.mark.parametrize("vocab", VOCABS)
def test_random_is_the_inverse_distribution_function_by_token_id(vocab: int) -> None:
    logits, uniforms = make_logits(9, vocab), numbers(9)
    token_ids, logprobs = sample_random(logits, uniforms, torch.empty_like(logits))
    sums = logits.double().softmax(1).cumsum(1)
    expected = (sums <= uniforms[:, None]).sum(1)
    close = (sums - uniforms[:, None]).abs().amin(1) < 1e-6
    assert (token_ids == expected)[~close].all() and not close.all()
    expected = logits.log_softmax(1).gather(1, token_ids[:, None]).squeeze(1)
    torch.testing.assert_close(logprobs, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("uniform", [2.0**-33, 1 - 2.0**-33])
def test_the_ends_of_the_interval_never_give_an_impossible_token(uniform: float) -> None:
    logits = torch.full((1, 3000), -torch.inf, device=DEVICE)
    logits[0, [7, 1400, 2900]] = torch.tensor([1.0, 0.0, -1.0], device=DEVICE)
    uniforms = torch.tensor([uniform], dtype=torch.float64, device=DEVICE)
    scratch = torch.empty_like(logits)
    expected = [7 if uniform < 0.5 else 2900]
    assert sample_random(logits, uniforms, scratch)[0].tolist() == expected
    assert sample_filtered(logits, uniforms, *filters(1, NO_LIMIT, 1.0, 0.0), scratch)[0].tolist() == expected


@pytest.mark.parametrize(
    ("top_k", "top_p", "min_p", "ties"),
    [
        pytest.param(*each, ties, marks=pytest.mark.slow if ties == number % 2 else ())
        for number, each in enumerate(FILTERS)
        for ties in (False, True)
    ],
)
def test_filtered_choice_equals_sort_cut_walk(top_k: int, top_p: float, min_p: float, ties: bool) -> None:
    logits, uniforms = make_logits(3, 300, ties), numbers(3)
    before = logits.clone()
    chosen = sample_filtered(logits, uniforms, *filters(3, top_k, top_p, min_p), torch.empty_like(logits))
    expected = expected_filtered(logits, uniforms, top_k, top_p, min_p)
    assert chosen[0].tolist() == [token for token, _ in expected]
    np.testing.assert_allclose(chosen[1].cpu().numpy(), [lp for _, lp in expected], atol=1e-5)
    assert torch.equal(logits, before)


@pytest.mark.parametrize(
    ("top_k", "top_p", "min_p"),
    [
        (2000, 0.99, 0.0),
        pytest.param(NO_LIMIT, 0.3, 0.0, marks=pytest.mark.slow),
        pytest.param(NO_LIMIT, 1.0, 0.2, marks=pytest.mark.slow),
    ],
)
def test_flat_distributions_that_keep_more_than_half_of_the_vocabulary(
    top_k: int, top_p: float, min_p: float
) -> None:
    logits, uniforms = make_logits(2, 3000) / 6, numbers(2)
    scratch = torch.empty_like(logits)
    token_ids, _ = sample_filtered(logits, uniforms, *filters(2, top_k, top_p, min_p), scratch)
    assert token_ids.tolist() == [t for t, _ in expected_filtered(logits, uniforms, top_k, top_p, min_p)]


@pytest.mark.slow
@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("vocab", [32000, 151936])
def test_vocabularies_of_models(vocab: int, ties: bool) -> None:
    logits, uniforms = make_logits(2, vocab, ties), numbers(2)
    scratch = torch.empty_like(logits)
    for top_k, top_p, min_p in ((50, 0.9, 0.0), (NO_LIMIT, 0.95, 0.0), (NO_LIMIT, 1.0, 0.1), (5, 1.0, 0.0)):
        token_ids, _ = sample_filtered(logits, uniforms, *filters(2, top_k, top_p, min_p), scratch)
        expected = expected_filtered(logits, uniforms, top_k, top_p, min_p)
        assert token_ids.tolist() == [token for token, _ in expected]
    assert torch.equal(sample_greedy(logits, scratch)[0], logits.argmax(1))
    sums = logits.double().softmax(1).cumsum(1)
    token_ids, _ = sample_random(logits, uniforms, scratch)
    at = sums.gather(1, token_ids[:, None]).squeeze(1)
    before = at - logits.double().softmax(1).gather(1, token_ids[:, None]).squeeze(1)
    assert ((before - 1e-6 <= uniforms) & (uniforms <= at + 1e-6)).all()


def test_all_logits_equal_are_kept_and_chosen_by_token_id() -> None:
    logits = torch.full((5, 100), 2.5, device=DEVICE)
    logits[:, ::2] = 0.0
    logits[:, 1::4] *= -0.0
    logits[:, 3::4] = 0.0
    uniforms = torch.tensor([0.001, 0.26, 0.5, 0.77, 0.999], dtype=torch.float64, device=DEVICE)
    scratch = torch.empty_like(logits)
    token_ids, _ = sample_filtered(logits, uniforms, *filters(5, 10, 1.0, 0.0), scratch)
    assert token_ids.tolist() == [0, 2, 5, 7, 9]


def test_of_equal_logits_at_the_cut_only_the_first_are_kept() -> None:
    """Kept are token 3 and one or two of tokens 0, 1 and 4, by count or by mass."""
    logits = torch.tensor([[2.0, 2.0, 1.0, 3.0, 2.0]] * 4, device=DEVICE)
    uniforms = torch.full((4,), 1 - 2.0**-20, dtype=torch.float64, device=DEVICE)
    share = logits[0].double().softmax(0)[[3, 0]].tolist()
    top_k = torch.tensor([2, 3, NO_LIMIT, NO_LIMIT], device=DEVICE)
    limits = [1.0, 1.0, share[0] + 0.5 * share[1], share[0] + 1.5 * share[1]]
    top_p = torch.tensor(limits, dtype=torch.float64, device=DEVICE)
    token_ids, _ = sample_filtered(logits, uniforms, top_k, top_p, top_p * 0, torch.empty_like(logits))
    assert token_ids.tolist() == [0, 1, 0, 1]
    token_ids, _ = sample_filtered(logits, uniforms * 0.5, top_k, top_p, top_p * 0, torch.empty_like(logits))
    assert token_ids.tolist() == [3, 3, 3, 3]


@pytest.mark.parametrize(("rows", "vocab"), [(7, 300), pytest.param(33, 40, marks=pytest.mark.slow)])
def test_every_row_is_chosen_as_it_says_alone_and_in_a_batch(rows: int, vocab: int) -> None:
    logits, uniforms = make_logits(rows, vocab), numbers(rows)
    kinds = (torch.arange(rows) % 3).to(torch.int32).to(DEVICE)
    scales = (0.5 + torch.rand(rows)).to(DEVICE)
    top_k = (1 + torch.arange(rows)).to(DEVICE)
    top_p = torch.linspace(0.1, 1.0, rows, dtype=torch.float64).to(DEVICE)
    min_p = torch.zeros(rows, dtype=torch.float64, device=DEVICE)
    parameters = (kinds, scales, uniforms, top_k, top_p, min_p)
    together = sample_rows(logits, *parameters, torch.empty_like(logits))
    scaled = logits * scales[:, None]
    scratch = torch.empty_like(logits)
    expected = [
        sample_greedy(scaled, scratch),
        sample_random(scaled, uniforms, scratch),
        sample_filtered(scaled, uniforms, top_k, top_p, min_p, scratch),
    ]
    for row in range(rows):
        token_ids, logprobs = expected[row % 3]
        assert together[0][row] == token_ids[row]
        # A GPU scales and subtracts the peak with one rounding.
        torch.testing.assert_close(together[1][row], logprobs[row], rtol=1e-6, atol=1e-6)
    one = slice(5, 6)
    alone = sample_rows(logits[one], *(parameter[one] for parameter in parameters), scratch[one])
    assert alone[0] == together[0][5] and alone[1] == together[1][5]


def test_rows_may_be_a_slice_of_a_wider_tensor() -> None:
    wide = make_logits(4, 500)
    logits = wide[:, 100:400]
    token_ids, _ = sample_greedy(logits, torch.empty_like(wide))
    assert torch.equal(token_ids, logits.argmax(1))
    chosen, _ = sample_filtered(logits, numbers(4), *filters(4, 1, 1.0, 0.0), torch.empty_like(wide))
    assert torch.equal(chosen, token_ids)


def test_no_rows_give_no_tokens() -> None:
    assert greedy_tokens(make_logits(0, 300))[0].shape == (0,)


@pytest.mark.filterwarnings("ignore:invalid value")
def test_logits_that_are_not_numbers_give_some_token() -> None:
    logits = torch.full((2, 300), math.nan, device=DEVICE)
    logits[1, 7] = 1.0
    scratch = torch.empty_like(logits)
    for token_ids, _ in (
        sample_greedy(logits, scratch),
        sample_random(logits, numbers(2), scratch),
        sample_filtered(logits, numbers(2), *filters(2, 5, 0.9, 0.0), scratch),
    ):
        assert ((token_ids >= 0) & (token_ids < 300)).all()


def test_logits_that_are_no_numbers_are_seen_in_their_row_alone() -> None:
    names = list(broken_logits.BROKEN) if DEVICE == "cuda" else ["NaN within", "all NaN", "+inf", "all -inf"]
    broken_logits.check(sample, names, 300, DEVICE)
