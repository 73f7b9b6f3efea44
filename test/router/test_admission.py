"""The peak formula against its plainest reading, and what makes requests stay longer."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightllm.router.admission import Conservative, Forecast, PastFuture, peak

DOCS_EXAMPLE = [(5, 4), (4, 3), (5, 3), (3, 2), (4, 2)]
amounts = st.lists(
    st.tuples(st.integers(0, 50), st.integers(0, 50), st.integers(0, 20)), min_size=1, max_size=12
)


def formula(pairs):
    pairs = sorted(pairs, key=lambda pair: -pair[1])
    return max(b * (i + 1) + sum(a for a, _ in pairs[: i + 1]) for i, (_, b) in enumerate(pairs))


def simulate(triples):
    """The sum of all that is held, at every single moment."""
    last = max(b + d for _, b, d in triples)
    return max(sum(a + min(t, b) for a, b, d in triples if t <= b + d) for t in range(last + 1))


def columns(tuples):
    return [np.array(column, dtype=np.int64) for column in zip(*tuples, strict=True)]


def test_example_of_the_documentation_peaks_at_31():
    assert peak(*columns(DOCS_EXAMPLE)) == 31 == formula(DOCS_EXAMPLE)


def test_nothing_needs_nothing():
    assert peak(np.zeros(0, np.int64), np.zeros(0, np.int64)) == 0


@settings(max_examples=300, database=None)
@given(amounts)
def test_peak_without_delay_is_the_formula(triples):
    pairs = [(a, b) for a, b, _ in triples]
    assert peak(*columns(pairs)) == formula(pairs)


@settings(max_examples=300, database=None)
@given(amounts)
def test_peak_with_delays_is_what_a_simulation_finds(triples):
    assert peak(*columns(triples)) == simulate(triples)


def forecast(capacity, budget=1000, chunk=1000):
    return Forecast(Conservative(), capacity, budget, chunk, whole_prompts=False)


def admit(memory, context, limit, waits=None):
    """New requests of which nothing is cached."""
    n = len(context)
    return memory.admit(context, context, waits or [False] * n, [0] * n, limit)


def test_request_fits_exactly_when_its_slots_do():
    # 10 prompt tokens and 5 outputs, the last of which needs no slot
    assert admit(forecast(14), [10], [5])
    assert not admit(forecast(13), [10], [5])


def test_candidates_are_admitted_all_or_none():
    memory = forecast(28)
    assert not admit(memory, [10, 10, 10], [5, 5, 5])
    assert memory.peak() == 0
    assert admit(memory, [10, 10], [5, 5])
    assert memory.peak() == 28


def test_short_request_fits_beside_a_long_one_that_grows_after_it_ended():
    memory = forecast(60)
    memory.add_decoding(np.array([10]), np.array([0]), np.array([50]))
    assert admit(memory, [40], [2])  # gone after 3 rounds; the totals would be 60 + 41
    assert admit(forecast(60), [40], [2])


def test_slow_prefill_counts_with_what_others_grow_meanwhile():
    memory = forecast(60, budget=5, chunk=4)
    memory.add_decoding(np.array([10]), np.array([0]), np.array([50]))
    assert not admit(memory, [40], [2])  # ten rounds of prefill


def test_rows_never_exceed_the_token_budget():
    memory = forecast(1000, budget=2, chunk=2)
    assert admit(memory, [1, 1], [5, 5])
    assert not admit(memory, [1], [5])


@pytest.mark.parametrize(("waits", "peak_tokens"), [(False, 147), (True, 161)])
def test_a_prompt_that_may_wait_is_expected_to_run_after_those_ahead(waits, peak_tokens):
    """Ten decode rows grow by two more tokens each if the three prompts come one after the other."""
    memory = forecast(1000, budget=400, chunk=100)
    memory.add_decoding(np.full(10, 1), np.full(10, 0), np.full(10, 5))
    memory.add_prefilling([2, 2, 100], [2, 2, 100], [False, waits, False], [0, 0, 0], [2, 2, 2])
    assert memory.peak() == peak_tokens


def test_only_uncached_tokens_are_prefill_work():
    memory = forecast(60, budget=5, chunk=4)
    memory.add_decoding(np.array([10]), np.array([0]), np.array([50]))
    assert memory.admit([40], [4], [False], [0], [2])  # one round instead of ten


def test_predictions_from_the_past_leave_a_reserve_unless_nobody_runs():
    policy = PastFuture(window=10, warm_start=0)
    policy.reserve = 0.25
    for _ in range(10):
        policy.learn(5, ended=True)
    memory = Forecast(policy, 40, 1000, 1000, whole_prompts=False)
    assert admit(memory, [18], [99]) and memory.peak() == 22
    assert not admit(memory, [5], [99])  # 31 of 40
    assert admit(memory, [4], [99]) and memory.peak() == 30
    alone = Forecast(policy, 40, 1000, 1000, whole_prompts=False)
    assert admit(alone, [36], [99]) and alone.peak() == 40
