"""The peak formula against its plainest reading, and what makes requests stay longer."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.router_device import make_limits

from lightllm.router.admission.demand import Demand
from lightllm.router.admission.forecast import Forecast
from lightllm.router.admission.output_lengths import OutputLengths
from lightllm.router.admission.schedule_policy import Conservative, PastFuture
from lightllm.router.admission.usage import KnownUsage, peak

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


def forecast(capacity, budget=1000, chunk=1000, policy=None, lengths=None):
    """In rounds of `budget` tokens, with prefill chunks of `chunk`."""
    config = make_limits(batch_max_tokens=budget, chunked_prefill_size=chunk, max_req_total_len=budget + 1)
    return Forecast(policy or Conservative(), lengths or OutputLengths(), config, capacity)


def prompts(*asked):
    """(context, limit) or (context, limit, whether it may wait) of new requests, of which nothing is cached."""
    return Demand.of([(context, 0, limit, False, context, any(waits)) for context, limit, *waits in asked])


def decoding(memory, held, generated, limit, exact=None):
    exact = np.zeros(len(held), bool) if exact is None else np.array(exact)
    memory.add_decoding(Demand.decoding(np.array(held), np.array(generated), np.array(limit), exact))


def test_request_fits_exactly_when_its_slots_do():
    # 10 prompt tokens and 5 outputs, the last of which needs no slot
    assert forecast(14).admit(prompts((10, 5)))
    assert not forecast(13).admit(prompts((10, 5)))


def test_candidates_are_admitted_all_or_none():
    memory = forecast(28)
    assert not memory.admit(prompts((10, 5), (10, 5), (10, 5)))
    assert memory.peak == 0
    assert memory.admit(prompts((10, 5), (10, 5)))
    assert memory.peak == 28


def test_short_request_fits_beside_a_long_one_that_grows_after_it_ended():
    memory = forecast(60)
    decoding(memory, [10], [0], [50])
    assert memory.admit(prompts((40, 2)))  # gone after 3 rounds; the totals would be 60 + 41
    assert forecast(60).admit(prompts((40, 2)))


def test_slow_prefill_counts_with_what_others_grow_meanwhile():
    memory = forecast(60, budget=5, chunk=4)
    decoding(memory, [10], [0], [50])
    assert not memory.admit(prompts((40, 2)))  # ten rounds of prefill


def test_rows_never_exceed_the_token_budget():
    memory = forecast(1000, budget=2, chunk=2)
    assert memory.admit(prompts((1, 5), (1, 5)))
    assert not memory.admit(prompts((1, 5)))


@pytest.mark.parametrize(("waits", "peak_tokens"), [(False, 147), (True, 161)])
def test_a_prompt_that_may_wait_is_expected_to_run_after_those_ahead(waits, peak_tokens):
    """Ten decode rows grow by two more tokens each if the three prompts come one after the other."""
    memory = forecast(1000, budget=400, chunk=100)
    decoding(memory, [1] * 10, [0] * 10, [5] * 10)
    memory.add_prefilling(prompts((2, 2), (2, 2, waits), (100, 2)))
    assert memory.peak == peak_tokens


def test_only_uncached_tokens_are_prefill_work():
    memory = forecast(60, budget=5, chunk=4)
    decoding(memory, [10], [0], [50])
    assert memory.admit(Demand.of([(40, 0, 2, False, 4, False)]))  # one round instead of ten


def knowing(ends, missing=0):
    """Outputs of these lengths have been seen; `missing` ones count as endless."""
    lengths = OutputLengths(warm_start=missing)
    for length in ends:
        lengths.add(length, ended=True)
    lengths.update(np.zeros(0, np.int64), 0)
    return lengths


def expecting(ends, caution, capacity=10_000):
    return forecast(capacity, policy=PastFuture(caution), lengths=knowing(ends))


def test_certain_predictions_fill_the_memory():
    """17 slots for the prompt, and one for each of 5 tokens, if one looked at the very moment."""
    memory = expecting([5] * 10, 3.0, 48)
    assert memory.admit(prompts((18, 20)))
    assert 20 <= memory.peak <= 24
    assert memory.admit(prompts((18, 20))) and not memory.admit(prompts((18, 20)))


def test_doubtful_predictions_leave_as_much_free_as_they_may_be_wrong():
    """Half of the outputs have 2 tokens, half 90: in 64 rounds a request that holds 100 has gone, or holds 164."""
    for caution, peak_tokens in [(0.0, 328), (1.0, 328 + 164), (2.0, 328 + 328)]:
        memory = expecting([2, 90] * 50, caution)
        decoding(memory, [100] * 4, [0] * 4, [99] * 4)
        assert memory.peak == max(peak_tokens, 4 * 102)
    assert knowing_forecast(720).admit(prompts((18, 99)))
    assert not knowing_forecast(720).admit(prompts((100, 99)))


def knowing_forecast(capacity):
    memory = expecting([2, 90] * 50, 2.0, capacity)
    decoding(memory, [100] * 4, [0] * 4, [99] * 4)
    return memory


def test_output_that_only_its_limit_ends_is_known_exactly():
    memory = expecting([2] * 50, 2.0)
    decoding(memory, [100, 100], [0, 0], [100, 100], [False, True])
    assert memory.peak == 204
    decoding(memory, [100], [0], [9000], [True])
    assert memory.peak == 9100
    assert memory.admit(prompts((100, 900))) and memory.peak == 9100
    assert not memory.admit(Demand.of([(9000, 0, 900, True, 9000, False)]))


def test_a_request_that_comes_alone_has_the_whole_memory():
    alone = expecting([2, 18] * 50, 9.0, 40)
    assert alone.admit(prompts((23, 18))) and not alone.admit(prompts((2, 2)))


@settings(max_examples=200, database=None)
@given(amounts, amounts)
def test_usage_with_candidates_is_the_usage_of_all(running, candidates):
    usage = KnownUsage().plus(*known(running))
    assert usage.peak == simulate(running)
    assert usage.plus(*known(candidates)).peak == simulate(running + candidates)
    assert usage.peak == simulate(running)


def known(triples):
    held, to_come, delay = columns(triples)
    return Demand.decoding(held, held, held, held > held), to_come, delay


counts = st.tuples(
    st.integers(0, 500), st.integers(0, 40), st.integers(0, 70), st.integers(1, 80), st.booleans()
)


@settings(max_examples=100, database=None, deadline=None)
@given(
    st.lists(counts, min_size=1, max_size=12),
    st.lists(st.integers(1, 60), min_size=1, max_size=20),
    st.integers(0, 40),
)
def test_requests_one_by_one_are_foreseen_as_all_at_once(asked, ends, missing):
    """Survival ends with nobody, or (`missing`) with some whose lengths are not known."""
    held, delay, generated, to_come, exact = (np.array(column) for column in zip(*asked, strict=True))
    demand = Demand.decoding(held, generated, generated + to_come, exact)
    empty = PastFuture(2.0).usage(knowing(ends, missing))
    one_by_one = empty
    for i in range(len(asked)):
        at = slice(i, i + 1)
        one_by_one = one_by_one.plus(Demand(*(column[at] for column in demand)), to_come[at], delay[at])
    assert empty.plus(demand, to_come, delay).peak == pytest.approx(one_by_one.peak, abs=1)
    assert empty.peak == 0


@settings(max_examples=100, database=None, deadline=None)
@given(
    st.lists(counts, min_size=1, max_size=6),
    st.lists(st.integers(1, 60), min_size=1, max_size=20),
    st.integers(0, 40),
)
def test_the_expected_peak_is_the_most_of_mean_and_deviation_worked_out_by_hand(asked, ends, missing):
    lengths = knowing(ends, missing)
    held, delay, generated, to_come, _ = (np.array(column) for column in zip(*asked, strict=True))
    demand = Demand.decoding(held, generated, generated + to_come, held < 0)
    found = []
    for time in 2 ** np.arange(1, 12):
        more = np.maximum(time - delay - 1, 0)
        alive = [float(lengths.survive(np.array([g]), np.array([m]))[0]) for g, m in zip(generated, more)]
        alive = np.where(more < to_come, alive, 0.0)
        slots = held + np.minimum(time, to_come)
        found.append((alive * slots).sum() + 2 * np.sqrt((alive * (1 - alive) * slots**2).sum()))
    usage = PastFuture(2.0).usage(lengths).plus(demand, to_come, delay)
    assert usage.peak == pytest.approx(max(found), abs=1)
