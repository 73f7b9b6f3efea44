"""What the past says about the future: draws follow the lengths that were seen, given what is there already."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightllm.router.admission import Aggressive, Conservative, PastFuture, make_policy
from lightllm.router.output_lengths import OutputLengths, spread

LIMIT = 10_000


def learned(lengths, warm_start=0, window=1000, cut=()):
    past = OutputLengths(window, warm_start)
    for length in lengths:
        past.add(length, ended=True)
    for length in cut:
        past.add(length, ended=False)
    return past


def draws(past, generated=0, limit=LIMIT, count=1000):
    """[count]: total lengths, evenly over the whole distribution."""
    uniform = (np.arange(count) + 0.5) / count
    return generated + past.draw(np.full(count, generated), np.full(count, limit), uniform)


def shares(lengths):
    values, counts = np.unique(lengths, return_counts=True)
    return dict(zip(values.tolist(), (counts / len(lengths)).round(2).tolist(), strict=True))


def test_without_a_past_outputs_run_to_their_limit():
    assert shares(draws(learned([]))) == {LIMIT: 1.0}


def test_draws_have_the_shares_of_what_was_seen():
    assert shares(draws(learned([10, 10, 20, 40]))) == {10: 0.5, 20: 0.25, 40: 0.25}


def test_what_is_generated_already_excludes_shorter_lengths():
    past = learned([10, 10, 20, 40])
    assert shares(draws(past, generated=9)) == {10: 0.5, 20: 0.25, 40: 0.25}
    assert shares(draws(past, generated=10)) == {20: 0.5, 40: 0.5}
    assert shares(draws(past, generated=39)) == {40: 1.0}


def test_who_is_longer_than_all_that_was_seen_runs_to_the_limit():
    assert shares(draws(learned([10, 20]), generated=20)) == {LIMIT: 1.0}


def test_nobody_exceeds_the_limit():
    assert shares(draws(learned([10, 20, 40]), limit=20)) == {10: 0.33, 20: 0.67}
    assert shares(draws(learned([10, 20, 40]), generated=20, limit=20)) == {20: 1.0}


def test_a_nearly_empty_window_leans_to_the_limit():
    assert shares(draws(learned([10] * 8, warm_start=32))) == {10: 0.25, LIMIT: 0.75}
    assert shares(draws(learned([10] * 32, warm_start=32))) == {10: 1.0}


def test_only_the_window_counts():
    assert shares(draws(learned([500] * 7 + [10, 20], window=2))) == {10: 0.5, 20: 0.5}


def test_outputs_that_were_cut_off_count_as_longer_than_that():
    # Half of them were cut at 5, before any end: they say nothing about what comes behind.
    assert shares(draws(learned([10, 20], cut=[5, 5]))) == {10: 0.5, 20: 0.5}
    # Who was cut at 10 is still alive when the first ends there.
    assert shares(draws(learned([10], cut=[10]))) == {10: 0.5, LIMIT: 0.5}
    assert shares(draws(learned([], cut=[10, 20]))) == {LIMIT: 1.0}


@settings(max_examples=200, database=None, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 30), st.booleans()), max_size=20),
    st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)), min_size=1, max_size=8),
    st.integers(0, 2**64),
    st.integers(0, 8),
)
def test_draws_stay_between_one_more_and_the_limit(past, requests, seed, warm_start):
    lengths = OutputLengths(10, warm_start)
    for length, ended in past:
        lengths.add(length, ended)
    generated = np.array([min(pair) for pair in requests])
    limit = np.array([max(pair) for pair in requests])
    to_come = lengths.draw(generated, limit, spread(seed, 3, 0, len(requests)))
    assert (to_come >= np.minimum(limit - generated, 1)).all()
    assert (to_come <= limit - generated).all()


def test_numbers_are_spread_evenly_in_every_round_and_uniform_over_the_rounds():
    for round_ in range(20):
        gaps = np.diff(np.sort(spread(7, round_, 0, 100)))
        assert gaps.max() < 0.03  # independent ones would leave gaps of about 0.05
    first = [spread(7, round_, 0, 1)[0] for round_ in range(2000)]
    assert np.histogram(first, bins=10, range=(0, 1))[0].min() > 150


def test_numbers_depend_on_seed_round_and_place_alone():
    numbers = spread(7, 3, 0, 10)
    assert (spread(7, 3, 4, 6) == numbers[4:]).all()
    assert (spread(7, 4, 0, 10) != numbers).all() and (spread(8, 3, 0, 10) != numbers).all()
    assert numbers.min() > 0 and numbers.max() < 1


def test_prediction_is_drawn_anew_every_round_and_only_then():
    policies = [PastFuture(seed=5), PastFuture(seed=5), PastFuture(seed=6)]
    seen = []
    for policy in policies:
        for length in range(1, 200):
            policy.learn(length, ended=True)
        rounds = []
        for seq in (1, 2):
            policy.begin_round(seq)
            ask = [policy.outputs_to_come(np.zeros(9, int), np.full(9, 500), 0) for _ in range(2)]
            assert (ask[0] == ask[1]).all()
            rounds.append(ask[0].tolist())
        assert rounds[0] != rounds[1]
        seen.append(rounds)
    assert seen[0] == seen[1] != seen[2]


@pytest.mark.parametrize(("policy", "to_come"), [(Conservative(), [0, 1, 90]), (Aggressive(), [0, 1, 1])])
def test_policies_without_a_past(policy, to_come):
    policy.learn(5, ended=True)
    found = policy.outputs_to_come(np.array([10, 9, 10]), np.array([10, 10, 100]), 0)
    assert found.tolist() == to_come


def test_policies_go_by_the_names_of_the_option():
    names = ("conservative", "aggressive", "past_future")
    assert [type(make_policy(name)) for name in names] == [Conservative, Aggressive, PastFuture]
