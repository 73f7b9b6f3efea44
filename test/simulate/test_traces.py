"""Traces: their lengths, their arrivals, and what their prompts share."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from lightllm.router.memory.radix_cache import common_length
from lightllm.simulate.synthetic import TRACES
from lightllm.simulate.trace import EOS, WORD, unique_ids

NAMES = sorted(TRACES)


def take(name: str, count: int, rate: float = 10.0, seed: int = 0) -> list:
    return list(TRACES[name].requests(count, rate, seed))


@pytest.mark.parametrize("name", NAMES)
def test_a_trace_has_its_count_in_order_of_arrival_and_its_rate(name):
    count = 20_000 if name == "synthetic:burst" else 6000
    requests = take(name, count)
    arrivals = np.array([r.arrival for r in requests])
    assert len(requests) == count
    assert (np.diff(arrivals) >= 0).all()
    assert count / arrivals[-1] == pytest.approx(10.0, rel=0.15)
    assert all(len(r.prompt_ids) >= 1 and r.output_len >= 1 for r in requests)
    assert all(r.prompt_ids.dtype == np.int32 for r in requests[:50])


@pytest.mark.parametrize("name", NAMES)
def test_the_same_seed_gives_the_same_trace_and_another_seed_another(name):
    first, again, other = take(name, 100), take(name, 100), take(name, 100, seed=1)
    assert [(r.arrival, r.output_len, r.prompt_ids.tolist()) for r in first] == [
        (r.arrival, r.output_len, r.prompt_ids.tolist()) for r in again
    ]
    assert [r.output_len for r in first] != [r.output_len for r in other]


@pytest.mark.parametrize("name", NAMES)
def test_all_requests_come_at_once_at_an_infinite_rate_in_the_number_wanted(name):
    requests = take(name, 10, rate=float("inf"))
    assert len(requests) == 10
    assert requests[0].arrival == 0.0


@pytest.mark.parametrize("name", ["synthetic:sharegpt", "synthetic:reasoning"])
def test_another_rate_changes_nothing_but_the_times(name):
    slow, fast = take(name, 50, rate=1.0), take(name, 50, rate=4.0)
    assert [r.arrival for r in slow] == pytest.approx([4 * r.arrival for r in fast])
    assert [r.output_len for r in slow] == [r.output_len for r in fast]


@pytest.mark.parametrize(
    ("name", "mean_in", "mean_out"), [("synthetic:sharegpt", 217, 200), ("synthetic:reasoning", 200, 1500)]
)
def test_lengths_have_the_means_that_the_trace_is_named_for(name, mean_in, mean_out):
    requests = take(name, 30_000)
    assert np.mean([len(r.prompt_ids) for r in requests]) == pytest.approx(mean_in, rel=0.03)
    assert np.mean([r.output_len for r in requests]) == pytest.approx(mean_out, rel=0.03)
    assert max(r.output_len for r in requests) <= TRACES[name].max_new_tokens


def test_reasoning_has_a_heavy_tail():
    outputs = np.array([r.output_len for r in take("synthetic:reasoning", 20_000)])
    assert np.quantile(outputs, 0.99) > 4 * outputs.mean()


def test_prompts_of_a_trace_without_conversations_share_nothing():
    requests = take("synthetic:sharegpt", 5000)
    firsts = {int(r.prompt_ids[0]) for r in requests}
    assert len(firsts) == 5000
    assert not firsts & {EOS, WORD}


def test_chat_prompts_share_system_prompts_and_continue_what_was_said():
    requests = take("synthetic:chat", 2000, rate=5.0)
    systems = {r.prompt_ids[:600].tobytes() for r in requests}
    assert len(systems) == 8
    longer = 0
    for a, b in itertools.combinations(requests[:300], 2):
        common = common_length(a.prompt_ids, b.prompt_ids)
        assert common in (0, 600) or common >= min(len(a.prompt_ids), len(b.prompt_ids))
        if common == len(a.prompt_ids) < len(b.prompt_ids):
            answer = b.prompt_ids[common : common + a.output_len - 1]
            longer += bool((answer == WORD).all())
    assert longer > 50


def test_bursts_vary_far_more_than_a_poisson_process():
    def dispersion(name: str) -> float:
        arrivals = [r.arrival for r in take(name, 20_000)]
        counts = np.bincount((np.array(arrivals) / 5.0).astype(int))
        return float(counts.var() / counts.mean())

    assert dispersion("synthetic:sharegpt") < 2
    assert dispersion("synthetic:burst") > 10


def test_a_day_has_a_quiet_night_and_a_busy_noon():
    arrivals = np.array([r.arrival for r in take("synthetic:day", 20_000)])
    by_hour = np.bincount((arrivals / arrivals[-1] * 23.999).astype(int), minlength=24)
    assert by_hour[0] < 0.6 * by_hour.mean() < 1.4 * by_hour.mean() < by_hour[12]
    assert by_hour[12] / by_hour[0] == pytest.approx(4.0, rel=0.15)


def test_a_trace_is_a_stream():
    requests = TRACES["synthetic:day"].requests(10**9, 10.0, 0)
    assert next(requests).arrival >= 0.0


def test_very_long_texts_are_possible():
    assert len(unique_ids(5, 3_000_000)) == 3_000_000
    assert unique_ids(5, 10).tolist() == unique_ids(5, 3_000_000)[:10].tolist()
