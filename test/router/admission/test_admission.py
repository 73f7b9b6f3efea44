"""The peak formula against its plainest reading, and what makes requests stay longer."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightllm.router.admission.admission import Forecast, Prefill
from lightllm.router.admission.output_lengths import OutputLengths
from lightllm.router.admission.schedule_policy import Conservative, PastFuture
from lightllm.router.admission.usage import FEW, Candidate, Entries, KnownUsage, peak

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
    waits = waits or [False] * len(context)
    prompts = zip(context, limit, waits, strict=True)
    return memory.admit([Prefill(tokens, tokens, 0, most, waits=w) for tokens, most, w in prompts])


def decoding(memory, held, generated, limit):
    memory.add_decoding(np.array(held), np.array(generated), np.array(limit), np.zeros(len(held), bool))


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
    decoding(memory, [10], [0], [50])
    assert admit(memory, [40], [2])  # gone after 3 rounds; the totals would be 60 + 41
    assert admit(forecast(60), [40], [2])


def test_slow_prefill_counts_with_what_others_grow_meanwhile():
    memory = forecast(60, budget=5, chunk=4)
    decoding(memory, [10], [0], [50])
    assert not admit(memory, [40], [2])  # ten rounds of prefill


def test_rows_never_exceed_the_token_budget():
    memory = forecast(1000, budget=2, chunk=2)
    assert admit(memory, [1, 1], [5, 5])
    assert not admit(memory, [1], [5])


@pytest.mark.parametrize(("waits", "peak_tokens"), [(False, 147), (True, 161)])
def test_a_prompt_that_may_wait_is_expected_to_run_after_those_ahead(waits, peak_tokens):
    """Ten decode rows grow by two more tokens each if the three prompts come one after the other."""
    memory = forecast(1000, budget=400, chunk=100)
    decoding(memory, [1] * 10, [0] * 10, [5] * 10)
    memory.add_prefilling([Prefill(2, 2, 0, 2), Prefill(2, 2, 0, 2, waits=waits), Prefill(100, 100, 0, 2)])
    assert memory.peak() == peak_tokens


def test_only_uncached_tokens_are_prefill_work():
    memory = forecast(60, budget=5, chunk=4)
    decoding(memory, [10], [0], [50])
    assert memory.admit([Prefill(40, 4, 0, 2)])  # one round instead of ten


def knowing(lengths, caution):
    """A policy that has seen outputs of these lengths."""
    policy = PastFuture(caution, OutputLengths(warm_start=0))
    for length in lengths:
        policy.learn(length, ended=True)
    policy.observe(np.zeros(0, np.int64))
    return policy


def test_certain_predictions_fill_the_memory():
    """17 slots for the prompt, and one for each of 5 tokens, if one looked at the very moment."""
    memory = Forecast(knowing([5] * 10, caution=3.0), 48, 1000, 1000, whole_prompts=False)
    assert admit(memory, [18], [20])
    assert 20 <= memory.peak() <= 24
    assert admit(memory, [18], [20]) and not admit(memory, [18], [20])


def test_doubtful_predictions_leave_as_much_free_as_they_may_be_wrong():
    """Half of the outputs have 2 tokens, half 90: in 64 rounds a request that holds 100 has gone, or holds 164."""
    for caution, peak_tokens in [(0.0, 328), (1.0, 328 + 164), (2.0, 328 + 328)]:
        memory = Forecast(knowing([2, 90] * 50, caution), 10_000, 1000, 1000, whole_prompts=False)
        decoding(memory, [100] * 4, [0] * 4, [99] * 4)
        assert memory.peak() == max(peak_tokens, 4 * 102)
    assert admit(knowing_forecast(720), [18], [99])
    assert not admit(knowing_forecast(720), [100], [99])


def knowing_forecast(capacity):
    memory = Forecast(knowing([2, 90] * 50, 2.0), capacity, 1000, 1000, whole_prompts=False)
    decoding(memory, [100] * 4, [0] * 4, [99] * 4)
    return memory


def test_output_that_only_its_limit_ends_is_known_exactly():
    memory = Forecast(knowing([2] * 50, 2.0), 10_000, 1000, 1000, whole_prompts=False)
    memory.add_decoding(np.array([100, 100]), np.zeros(2, int), np.full(2, 100), np.array([False, True]))
    assert memory.peak() == 204
    memory.add_decoding(np.array([100]), np.zeros(1, int), np.full(1, 9000), np.array([True]))
    assert memory.peak() == 9100
    assert admit(memory, [100], [900]) and memory.peak() == 9100
    assert not memory.admit([Prefill(9000, 9000, 0, 900, exact=True)])


def test_who_comes_alone_has_the_whole_memory():
    alone = Forecast(knowing([2, 18] * 50, caution=9.0), 40, 1000, 1000, whole_prompts=False)
    assert admit(alone, [23], [18]) and not admit(alone, [2], [2])


@settings(max_examples=200, database=None)
@given(amounts, amounts, amounts)
def test_usage_with_candidates_is_the_usage_of_all(running, first, second):
    usage = KnownUsage()
    usage.add(entries(running))
    assert usage.peak == simulate(running)
    usage.add(entries(first))
    assert usage.peak == simulate(running + first)
    candidates = [Candidate(held, to_come, delay, 0, 0, False) for held, to_come, delay in second]
    assert usage.peak_with(candidates) == simulate(running + first + second)
    assert usage.peak == simulate(running + first)


def entries(triples):
    held, to_come, delay = columns(triples)
    nothing = np.zeros(len(held), np.int64)
    return Entries(held, to_come, delay, nothing, nothing, nothing > 0)


@settings(max_examples=100, database=None, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 50), st.integers(0, 30), st.integers(1, 60)), min_size=1, max_size=8),
    st.lists(st.integers(1, 60), min_size=1, max_size=20),
    st.integers(1, 50),
    st.integers(0, 3),
)
def test_the_peak_with_a_candidate_is_never_below_what_all_hold_soon(running, lengths, context, caution):
    policy = knowing(lengths, float(caution))
    usage = policy.usage()
    held, generated, more = (np.array(column) for column in zip(*running, strict=True))
    one = np.ones(len(held), dtype=np.int64)
    usage.add(Entries(held, more, one, generated, generated + more, one > 1))
    candidate = Candidate(context, 80, 1, 0, 80, False)
    assert usage.peak_with([candidate]) + 1 > usage.soonest + context


counts = st.tuples(
    st.integers(0, 500), st.integers(0, 40), st.integers(0, 70), st.integers(1, 80), st.booleans()
)


@settings(max_examples=200, database=None, deadline=None)
@given(
    st.lists(counts, min_size=1, max_size=2 * FEW),
    st.lists(st.integers(1, 60), min_size=1, max_size=20),
    st.integers(0, 40),
)
def test_candidates_one_by_one_are_foreseen_as_in_arrays(asked, lengths, missing):
    """Survival ends with nobody, or (`missing`) with some whose lengths are not known."""
    candidates = [
        Candidate(held, to_come, delay, generated, generated + to_come, exact)
        for held, delay, generated, to_come, exact in asked
    ]
    policy = PastFuture(2.0, OutputLengths(warm_start=missing))
    for length in lengths:
        policy.learn(length, ended=True)
    policy.observe(np.zeros(0, np.int64))
    arrays, one_by_one, tried = policy.usage(), policy.usage(), policy.usage()
    arrays.add(Entries.of(candidates))
    for candidate in candidates:
        one_by_one.join([candidate])
    assert arrays.peak == pytest.approx(one_by_one.peak, abs=1)
    assert tried.peak_with(candidates) == pytest.approx(arrays.peak, abs=1) and tried.peak == 0
    tried.join(candidates)
    assert tried.peak == pytest.approx(arrays.peak, abs=1)


@settings(max_examples=300, database=None)
@given(
    st.lists(st.integers(1, 60), min_size=1, max_size=30),
    st.lists(st.tuples(st.integers(0, 40), st.integers(0, 30), st.integers(0, 40)), min_size=1, max_size=8),
    st.lists(st.tuples(st.integers(1, 60), st.integers(1, 80), st.booleans()), min_size=1, max_size=6),
    st.integers(100, 3000),
)
def test_who_fits_easily_fits_and_counts_as_if_worked_out(lengths, running, candidates, capacity):
    def server():
        memory = Forecast(knowing(lengths, 2.0), capacity, 1000, 32, whole_prompts=False)
        decoding(
            memory,
            *zip(*[(held, generated, generated + more) for held, generated, more in running], strict=True),
        )
        return memory

    quick, thorough = server(), server()
    thorough._roomy = False
    for context, limit, waits in candidates:
        prompts = [Prefill(context, context, 0, limit, waits=waits)]
        if not quick.fits_easily(prompts):
            break
        assert thorough.admit(prompts)
    assert quick.peak() == thorough.peak()


def test_who_fits_only_when_others_have_gone_does_not_fit_easily():
    """All outputs of those are planned, and they still hold what they hold."""
    memory = Forecast(knowing([50], 2.0), 100, 1000, 32, whole_prompts=False)
    decoding(memory, [60], [9], [9])
    assert not memory.fits_easily([Prefill(42, 42, 0, 1)])
    assert memory.fits_easily([Prefill(25, 25, 0, 1)])


def test_who_fits_only_with_short_outputs_does_not_fit_easily():
    assert not knowing_forecast(720).fits_easily([Prefill(18, 18, 0, 99)])
    assert knowing_forecast(1000).fits_easily([Prefill(18, 18, 0, 99)])
    assert not knowing_forecast(1000).fits_easily([Prefill(18, 18, 0, 99)], spare=200)
