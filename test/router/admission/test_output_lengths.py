"""What the past says about the future: draws follow the lengths that were seen, given what is there already."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.router_device import make_limits

from lightllm.router.admission.demand import Demand
from lightllm.router.admission.output_lengths import REFRESH_ROUNDS, OutputLengths
from lightllm.router.admission.schedule_policy import (
    Aggressive,
    Conservative,
    PastFuture,
    TokenRatio,
    make_policy,
)

LIMIT = 10_000


def learned(lengths, warm_start=0, window=1000, cut=(), running=()):
    """A past in which one request runs after the other."""
    past = OutputLengths(window, warm_start)
    round_ = 0
    for length, ended in [(length, True) for length in lengths] + [(length, False) for length in cut]:
        round_ += length
        past.add(length, ended, round_)
    past.refresh(np.array(running, dtype=np.int64), round_)
    return past


def shares(past, generated=0, limit=LIMIT):
    """Total length -> probability, if `generated` tokens are there; `limit` stands for all that are longer."""
    more = np.arange(limit - generated + 1)
    alive = past.survive(np.array([generated]), more)
    alive[-1] = 0.0
    found = -np.diff(alive, prepend=1.0)
    at = np.flatnonzero(found > 1e-9)
    return dict(zip((generated + more[at]).tolist(), found[at].round(2).tolist(), strict=True))


def test_without_a_past_outputs_run_to_their_limit():
    assert shares(learned([])) == {LIMIT: 1.0}


def test_draws_have_the_shares_of_what_was_seen():
    assert shares(learned([10, 10, 20, 40])) == {10: 0.5, 20: 0.25, 40: 0.25}


def test_what_is_generated_already_excludes_shorter_lengths():
    past = learned([10, 10, 20, 40])
    assert shares(past, generated=9) == {10: 0.5, 20: 0.25, 40: 0.25}
    assert shares(past, generated=10) == {20: 0.5, 40: 0.5}
    assert shares(past, generated=39) == {40: 1.0}


def test_who_is_longer_than_all_that_was_seen_runs_to_the_limit():
    assert shares(learned([10, 20]), generated=20) == {LIMIT: 1.0}


def test_nobody_exceeds_the_limit():
    assert shares(learned([10, 20, 40]), limit=20) == {10: 0.33, 20: 0.67}
    assert shares(learned([10, 20, 40]), generated=20, limit=20) == {20: 1.0}


def test_a_nearly_empty_window_leans_to_the_limit():
    assert shares(learned([10] * 8, warm_start=32)) == {10: 0.25, LIMIT: 0.75}
    assert shares(learned([10] * 32, warm_start=32)) == {10: 1.0}


def test_only_the_window_counts():
    assert shares(learned([500] * 7 + [10, 20], window=2)) == {10: 0.5, 20: 0.5}


def test_outputs_that_were_cut_off_count_as_longer_than_that():
    # Half of them were cut at 5, before any end: they say nothing about what comes behind.
    assert shares(learned([10, 20], cut=[5, 5])) == {10: 0.5, 20: 0.5}
    # Who was cut at 10 is still alive when the first ends there.
    assert shares(learned([10], cut=[10])) == {10: 0.5, LIMIT: 0.5}
    assert shares(learned([], cut=[10, 20])) == {LIMIT: 1.0}


def test_those_who_still_run_count_as_longer_than_what_they_have():
    # Of eight that began together, four have ended, and four go on: half are longer than 10, not none.
    assert shares(learned([10] * 4, running=[12] * 4)) == {10: 0.5, LIMIT: 0.5}
    assert shares(learned([10] * 4, running=[9] * 4)) == {10: 1.0}


def test_steady_traffic_is_seen_as_it_is_however_small_the_window():
    """Rows that are always busy, outputs of 10 or 100 tokens: the running ones do not count twice."""
    random = np.random.default_rng(0)
    past = OutputLengths(window=200, warm_start=0)
    length = np.where(random.random(100) < 0.5, 10, 100)
    generated = random.integers(0, 10, 100)
    for round_ in range(600):
        generated += 1
        for i in np.flatnonzero(generated == length):
            past.add(int(length[i]), True, round_)
            generated[i], length[i] = 0, 10 if random.random() < 0.5 else 100
    past.refresh(generated, 599)
    found = shares(past)
    assert set(found) == {10, 100} and abs(found[10] - 0.5) < 0.12


def test_burst_of_new_requests_does_not_make_outputs_look_short():
    """1000 begin at once; a fifth of their outputs has 10 tokens, the others 200. After 50 rounds only short ones ended."""
    past = OutputLengths(window=1000, warm_start=0)
    for _ in range(200):
        past.add(10, True, 10)
    past.refresh(np.full(800, 50), 50)
    assert past.survive(np.array([0]), 49) == pytest.approx(0.8)


def test_survival_is_conditional_on_what_is_generated():
    past = learned([10, 10, 20, 40])
    survive = past.survive(np.array([0, 0, 0, 10, 20, 40]), np.array([9, 10, 39, 5, 20, 7]))
    assert survive.tolist() == [1.0, 0.5, 0.25, 1.0, 0.0, 1.0]


@settings(max_examples=300, database=None, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 30), st.booleans(), st.integers(0, 9)), max_size=20),
    st.lists(st.integers(0, 40), max_size=5),
    st.integers(0, 40),
    st.integers(0, 8),
)
def test_survival_falls_from_one_to_no_less_than_nothing(past, running, generated, warm_start):
    lengths = OutputLengths(10, warm_start)
    round_ = 0
    for length, ended, rounds in past:
        round_ += rounds
        lengths.add(length, ended, round_)
    lengths.refresh(np.array(running, dtype=np.int64), round_)
    alive = lengths.survive(np.array([generated]), np.arange(50))
    assert alive[0] == 1.0 and (np.diff(alive) <= 0.0).all() and (alive >= 0.0).all()


@settings(max_examples=100, database=None, deadline=None)
@given(st.lists(st.integers(1, 60), min_size=1, max_size=20), st.integers(1, 80))
def test_moments_are_those_of_the_lengths(lengths, limit):
    cut = np.minimum(lengths, limit)
    mean, area = learned(lengths).moments(limit)
    assert mean == pytest.approx(cut.mean())
    assert area == pytest.approx((cut * (cut - 1) / 2).mean())


def test_curve_is_made_anew_every_few_rounds():
    past = OutputLengths(warm_start=0)
    found = []
    for round_ in range(3 * REFRESH_ROUNDS):
        past.add(round_ + 1, True, round_)
        past.update(np.zeros(0, int), round_)
        found.append(past.survive(np.array([0]), 1)[0])
    assert len(set(found)) == 3


def demand(generated, limit, exact=None):
    nothing = np.zeros(len(generated), dtype=np.int64)
    exact = np.zeros(len(generated), bool) if exact is None else np.array(exact)
    return Demand.decoding(nothing, np.array(generated), np.array(limit), exact)


@pytest.mark.parametrize(("policy", "to_come"), [(Conservative(), [0, 1, 90]), (Aggressive(), [0, 1, 1])])
def test_policies_without_a_past(policy, to_come):
    assert policy.outputs_to_come(demand([10, 9, 10], [10, 10, 100]), used=0.5).tolist() == to_come


def test_policies_go_by_the_names_of_the_options():
    names = ("conservative", "aggressive", "past_future")
    found = [type(make_policy(make_limits(schedule_policy=name))) for name in names]
    assert found == [Conservative, Aggressive, PastFuture]
    assert type(make_policy(make_limits(router_token_ratio=0.8))) is TokenRatio


@pytest.mark.parametrize(("used", "to_come"), [(0.79, [30, 10, 20, 60]), (0.8, [100, 150, 20, 60])])
def test_token_ratio_expects_short_outputs_until_the_memory_is_that_full(used, to_come):
    """LightLLM: min(max_new_tokens, max(1.1 * generated, --router_max_new_token_len))."""
    policy = TokenRatio(ratio=0.8, max_new_token_len=80)
    asked = demand([50, 100, 40, 40], [150, 250, 60, 100], [False, False, False, True])
    assert policy.outputs_to_come(asked, used).tolist() == to_come
