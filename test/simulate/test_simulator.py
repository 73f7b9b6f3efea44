"""The simulator: what it measures is what happens, and the policies do what they are for."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.scheduler_config import scheduler_config

from lightllm.router.scheduler_config import SchedulerConfig
from lightllm.simulate.figures import Distribution, Moment, Overtaking, RoundCosts, Timeline
from lightllm.simulate.latency import LatencyModel
from lightllm.simulate.load import Setting, find_peak, run
from lightllm.simulate.report import summarize
from lightllm.simulate.simulator import Simulation, Slo
from lightllm.simulate.synthetic import ChatTrace, Lengths, SyntheticTrace
from lightllm.simulate.trace import EOS, TraceRequest, unique_ids

DEVICE = LatencyModel(
    "test", "made up", floor=0.010, per_token=0.001, per_held=0.0, fixed=0.002,
    capacity=2000, batch_max_tokens=320, chunked_prefill_size=256,
)  # fmt: skip
FAST = dataclasses.replace(DEVICE, per_token=5e-5)
SMALL = SyntheticTrace("small", 200, Lengths(20, 0.7, 200), Lengths(20, 0.7, 200))


def make_limits(**changes) -> SchedulerConfig:
    values = {
        "max_total_token_num": 2000, "max_req_total_len": 2000, "running_max_req_size": 100, "batch_max_tokens": 320,
        "chunked_prefill_size": 256, "max_waiting_requests": 10**6, "eos_token_ids": [EOS],
    }  # fmt: skip
    return scheduler_config(**(values | changes))


def make_setting(trace=SMALL, requests=1000, slo=None, **changes) -> Setting:
    return Setting(
        trace,
        make_limits(**changes),
        DEVICE,
        slo or Slo(),
        requests,
        seed=0,
        max_new_tokens=200,
        check_every=50,
    )


def simulate(requests: list[TraceRequest], max_new_tokens: int = 100, **changes) -> Simulation:
    simulation = Simulation(make_limits(**changes), DEVICE, Slo(), max_new_tokens, warm_up=0, check_every=1)
    simulation.run(iter(requests))
    return simulation


def test_times_of_one_request_are_those_of_its_rounds():
    found = simulate([TraceRequest(5.0, unique_ids(0, 100), 4)])
    prefill, decode = 0.100 + 0.002, 0.010 + 0.002
    assert found.ttft.sum == pytest.approx(prefill)
    assert found.tpot.sum == pytest.approx(decode)
    assert found.gap.max == pytest.approx(decode)
    # one decode round more was in flight when the EOS came
    assert found.rounds == 5
    assert found.now == pytest.approx(5.0 + prefill + 4 * decode)


def test_a_long_prompt_takes_one_round_a_chunk():
    found = simulate([TraceRequest(0.0, unique_ids(0, 600), 1)], round_policy="mixed")
    assert found.ttft.sum == pytest.approx(0.600 + 3 * 0.002)
    assert found.prefilled_tokens == 600


def test_an_output_beyond_the_declared_limit_is_cut_there():
    found = simulate([TraceRequest(0.0, unique_ids(0, 10), 50)], max_new_tokens=7)
    assert found.end.output_tokens + 0 <= 7
    assert summarize(found, 1.0)["finished"] == 1
    assert found.scheduler.snapshot().output_tokens == 7


def test_what_can_never_fit_is_refused_and_counted():
    requests = [TraceRequest(0.0, unique_ids(i, 10 if i else 1990), 5) for i in range(4)]
    found = simulate(requests)
    assert (found.too_long, found.ttft.count) == (1, 3)
    assert summarize(found, 1.0)["refused_share"] == 0.25


def test_a_full_waiting_list_refuses():
    requests = [TraceRequest(0.0, unique_ids(i, 100), 50) for i in range(200)]
    found = simulate(requests, max_waiting_requests=10)
    assert 0 < found.too_long + found.ttft.count < 200
    assert found.too_long == 0


@pytest.mark.parametrize("policy", ["conservative", "aggressive", "past_future"])
@pytest.mark.parametrize("round_policy", ["mixed", "prefill_first", "decode_first"])
def test_every_token_of_the_trace_is_made_once(policy, round_policy):
    setting = make_setting(requests=300, schedule_policy=policy, round_policy=round_policy)
    _, found = run(setting, math.inf)
    trace = list(setting.trace.requests(300, math.inf, 0))
    assert found.ttft.count == 300
    assert found.scheduler.snapshot().output_tokens == sum(r.output_len for r in trace)
    assert found.prompt_tokens == sum(len(r.prompt_ids) for r in trace)
    assert len(found.live) == 0
    assert not found.scheduler.has_work


@pytest.mark.parametrize("cache", [True, False])
def test_prefill_is_prompts_less_what_was_cached_and_more_what_had_to_be_computed_again(cache):
    setting = make_setting(ChatTrace(systems=20, system_len=10, reading=0.1, speed=500.0, messages=Lengths(10, 0.5, 50),
                                     answers=Lengths(20, 0.7, 100)), 400,
                           schedule_policy="aggressive", disable_dynamic_prompt_cache=not cache, max_total_token_num=1000)  # fmt: skip
    report, found = run(setting, 1000.0)
    once = found.prompt_tokens - found.cached_tokens
    # the token that a request said last before it paused has no KV yet: resuming computes it for the first time
    resumed = found.prefilled_tokens - once - found.recomputed_tokens
    assert report["pauses"] > 0
    assert 0 < resumed <= report["pauses"]
    assert (found.cached_tokens > 0) == cache
    assert report["recomputed_tokens"] > 0


def test_without_pauses_nothing_is_computed_twice():
    report, found = run(make_setting(schedule_policy="conservative", requests=300), math.inf)
    assert (report["pauses"], report["recomputed_tokens"]) == (0, 0)
    assert found.prefilled_tokens == found.prompt_tokens


def test_the_same_seed_gives_the_same_figures():
    def figures() -> dict:
        report, _ = run(make_setting(schedule_policy="past_future", requests=300), 100.0)
        del report["scheduler_cpu"], report["process_peak_mib"]
        return report

    assert figures() == figures()


def test_at_a_light_load_throughput_is_the_load_and_all_is_good():
    report, _ = run(make_setting(requests=300), 5.0)
    assert report["throughput_rps"] == pytest.approx(5.0, rel=0.2)
    assert report["goodput_rps"] == report["throughput_rps"]
    assert report["memory"]["mean_share"] < 0.3


def test_a_run_too_short_for_a_warm_up_is_measured_as_a_whole():
    simulation = Simulation(make_limits(), DEVICE, Slo(), 100, warm_up=3)
    simulation.run(iter([TraceRequest(0.0, unique_ids(i, 10), 5) for i in range(4)]))
    report = summarize(simulation, math.inf)
    assert report["throughput_rps"] == pytest.approx(4 / simulation.now)
    assert report["rate_rps"] is None


def test_requests_that_miss_the_slo_are_not_good():
    report, _ = run(make_setting(requests=300, slo=Slo(ttft=0.2, gap=1.5)), 500.0)
    assert report["goodput_rps"] < 0.2 * report["throughput_rps"]
    generous, _ = run(make_setting(requests=300, slo=Slo(ttft=1e9, gap=1e9)), 500.0)
    assert generous["goodput_rps"] == generous["throughput_rps"]


def test_past_future_fills_memory_better_than_conservative_and_pauses_less_than_aggressive():
    conservative, aggressive, past_future = (
        run(dataclasses.replace(make_setting(requests=500, schedule_policy=policy), latency=FAST), math.inf)[
            0
        ]
        for policy in ("conservative", "aggressive", "past_future")
    )
    assert conservative["pauses"] == 0
    assert past_future["throughput_rps"] > 1.2 * conservative["throughput_rps"]
    assert past_future["memory"]["mean_share"] > 1.4 * conservative["memory"]["mean_share"]
    assert past_future["pauses_per_request"] < 0.25 * aggressive["pauses_per_request"]


def test_prefill_first_stalls_streams_and_mixed_does_not():
    requests = [TraceRequest(0.0, unique_ids(i, 20), 60) for i in range(8)]
    requests.append(TraceRequest(0.5, unique_ids(9, 1500), 1))
    gaps = {
        policy: simulate(requests, round_policy=policy, max_total_token_num=4000).gap.max
        for policy in ("mixed", "prefill_first", "decode_first")
    }
    chunk = 0.256 + 8 * 0.001 + 0.002
    assert gaps["mixed"] <= 1.05 * chunk
    assert gaps["prefill_first"] > 1.4


def test_the_peak_lies_where_goodput_is_best():
    told: list[str] = []
    setting = make_setting(requests=300, slo=Slo(ttft=0.5), schedule_policy="aggressive")
    peak, reports = find_peak(dataclasses.replace(setting, check_every=0), told.append)
    best = max(report["goodput_rps"] for report in reports)
    at_peak = next(report for report in reports if report["rate_rps"] == peak)
    assert at_peak["goodput_rps"] >= 0.99 * best
    assert [report["rate_rps"] for report in reports] == sorted(report["rate_rps"] for report in reports)
    assert len(told) == len(reports)
    assert reports[-1]["goodput_rps"] < best


def test_quantiles_are_right_to_a_percent():
    values = np.random.default_rng(0).lognormal(-3, 1.5, 5000)
    found = Distribution()
    for value in values:
        found.add(float(value))
    for share in (0.01, 0.5, 0.9, 0.99):
        assert found.quantile(share) == pytest.approx(float(np.quantile(values, share)), rel=0.02)
    assert found.mean == pytest.approx(float(values.mean()))
    assert found.quantile(1.0) <= found.max == values.max()


@given(st.permutations(list(range(1, 9))))
def test_overtaken_counts_those_who_came_later_and_started_earlier(starts):
    found = Overtaking()
    for _ in starts:
        found.accepted()
    for order in starts:
        found.started(order)
    expected = max(
        sum(starts.index(later) < starts.index(order) for later in starts if later > order)
        for order in starts
    )
    assert found.most == expected
    assert len(found) == 0


def test_costs_that_lie_on_a_line_give_that_line():
    costs = RoundCosts()
    for rows in (1, 50, 300, 700, 1000):
        costs.add(rows, 1e-4 + 2e-6 * rows)
    assert costs.line() == pytest.approx((1e-4, 2e-6))
    assert [entry["rows"] for entry in costs.table()] == [1, 50, 300, 700, 1000]
    assert costs.table()[2]["mean_us"] == pytest.approx(700.0)


def test_a_timeline_stays_small_and_covers_the_whole_run():
    timeline = Timeline(most=64)
    for second in range(10_000):
        if timeline.due():
            timeline.add(Moment(float(second), second, 0, 0, 0, 0))
    assert 16 <= len(timeline.moments) <= 64
    assert timeline.moments[0].time < 1000 and timeline.moments[-1].time > 9000
    assert timeline.mean_used(2000.0, 8000.0) == pytest.approx(5000, rel=0.05)
