"""The coarse server beside the fine one: the same figures where memory is not short, nearly the same where it is."""

from __future__ import annotations

import dataclasses
import random

import pytest

from lightllm.errors import InvalidOption
from lightllm.simulate.fleet import Fleet, FleetReport, Incident
from lightllm.simulate.fleet_cli import _scheduler_options as scheduler_options
from lightllm.simulate.fleet_cli import main, make_parser, make_setting
from lightllm.simulate.flight import Flight, Stretch
from lightllm.simulate.latency import A100_7B
from lightllm.simulate.load import Setting
from lightllm.simulate.synthetic import Lengths, TenantTrace


def setting(trace: str, capacity: int = 0, **options) -> Setting:
    found = make_setting(scheduler_options(make_parser().parse_args(["--trace", trace])))
    config = found.config.with_options(**options)
    if capacity:
        config = dataclasses.replace(config, max_total_token_num=capacity)
    return dataclasses.replace(found, config=config)


def both(
    one: Setting, requests: int, rate: float, servers: int = 1, method: str = "prefix_aware", incidents=()
) -> list[tuple[list[float], FleetReport]]:
    """(each TTFT, the report): of the fine simulation, and of the coarse one."""
    results = []
    for coarse in (False, True):
        fleet = Fleet(servers, method, one.config, one.latency, one.max_new_tokens, coarse=coarse)
        report = fleet.run(one.trace.requests(requests, rate, 0), incidents)
        results.append((sorted(fleet._ttft), report))
    return results


@pytest.mark.parametrize(
    ("trace", "servers", "rate", "method"),
    [
        ("synthetic:sharegpt", 1, 4.0, "round_robin"),
        ("synthetic:sharegpt", 2, 60.0, "least_tokens"),  # many rows, and long queues
        ("synthetic:chat", 2, 12.0, "prefix_aware"),
        ("synthetic:agents", 1, 2.0, "round_robin"),
    ],
)
def test_every_first_token_comes_when_it_does_in_the_fine_simulation(trace, servers, rate, method):
    fine, coarse = both(setting(trace), 100, rate, servers, method)
    assert coarse[0] == pytest.approx(fine[0], abs=1e-6)
    assert coarse[1].hit_rate == fine[1].hit_rate and coarse[1].hot_spot == fine[1].hot_spot


SHORT = dataclasses.replace(setting("synthetic:tenants"), trace=TenantTrace(answers=Lengths(30, 0.7, 128)))


@pytest.mark.parametrize("method", ["prefix_aware", "kv_aware", "round_robin"])
def test_fleets_whose_caches_overflow_are_alike_within_three_percent(method):
    (_, fine), (_, coarse) = both(SHORT, 240, 10.0, 4, method)
    assert coarse.left_over == coarse.refused == 0 and coarse.finished == 240
    for name in ("throughput_rps", "output_tokens_per_s", "hit_rate", "ttft_p50", "ttft_p99", "hot_spot"):
        assert getattr(coarse, name) == pytest.approx(getattr(fine, name), rel=0.03), name


@pytest.mark.parametrize("policy", ["past_future", "aggressive", "conservative"])
def test_a_server_without_memory_for_its_load_is_alike_within_ten_percent(policy):
    one = setting("synthetic:sharegpt", capacity=12_000, schedule_policy=policy)
    (_, fine), (_, coarse) = both(one, 200, 20.0)
    assert coarse.left_over == 0 and coarse.finished == 200
    for name in ("output_tokens_per_s", "ttft_p50", "ttft_p99"):
        assert getattr(coarse, name) == pytest.approx(getattr(fine, name), rel=0.1), name


def test_requests_of_a_server_that_dies_go_on_with_what_they_have():
    (_, fine), (_, coarse) = both(
        setting("synthetic:sharegpt"), 120, 20.0, 3, "least_tokens", [Incident(3.0, 1)]
    )
    assert coarse.moved == fine.moved > 0 and coarse.finished == 120 and coarse.left_over == 0
    assert coarse.output_tokens_per_s == pytest.approx(fine.output_tokens_per_s, rel=0.02)
    assert coarse.ttft_p99 == pytest.approx(fine.ttft_p99, rel=0.02)


def test_a_server_that_becomes_slow_is_slow_from_the_next_rounds_on():
    slow = [Incident(3.0, 0, 4.0)]
    (_, fine), (_, coarse) = both(setting("synthetic:sharegpt"), 120, 12.0, 2, "least_tokens", slow)
    assert coarse.ttft_p50 == pytest.approx(fine.ttft_p50, rel=0.02)
    assert coarse.output_tokens_per_s == pytest.approx(fine.output_tokens_per_s, rel=0.02)


@pytest.mark.parametrize("seed", range(12))
def test_whatever_the_memory_every_request_ends_and_the_books_are_empty(seed):
    rng = random.Random(seed)
    policy = rng.choice(["past_future", "aggressive", "conservative"])
    trace, least = rng.choice(
        [("synthetic:sharegpt", 5000), ("synthetic:tenants", 5000), ("synthetic:agents", 15_000)]
    )
    one = setting(trace, capacity=rng.choice([least, 2 * least, 40_000]), schedule_policy=policy)
    servers, rate = rng.randrange(1, 4), rng.choice([1.0, 20.0, 100.0])
    incidents = [Incident(20 / rate, 0)] if servers > 1 else [Incident(20 / rate, 0, 3.0)]
    method = rng.choice(["prefix_aware", "kv_aware", "lottery"])
    fleet = Fleet(servers, method, one.config, one.latency, one.max_new_tokens, coarse=True)
    report = fleet.run(one.trace.requests(60, rate, seed), incidents)
    assert report.finished + report.refused == 60 and report.left_over == 0
    for server in fleet._servers:
        coarse = server.simulation
        if not server.gone:
            assert not coarse._cache.check([]) and coarse._free >= 0 == coarse._own == coarse._contexts
            assert not (coarse._waiting or coarse._prefilling or coarse._decoding)


def test_prompts_that_could_never_fit_are_refused():
    one = setting("synthetic:sharegpt", max_req_total_len=None)
    config = dataclasses.replace(one.config, max_req_total_len=one.max_new_tokens + 200)
    (_, fine), (_, coarse) = both(dataclasses.replace(one, config=config), 60, 10.0)
    assert coarse.refused == fine.refused > 0 and coarse.finished == fine.finished


def test_rounds_of_another_kind_are_no_coarse_simulations():
    config = setting("synthetic:sharegpt", round_policy="prefill_first").config
    with pytest.raises(InvalidOption, match="mixed"):
        Fleet(1, "lottery", config, A100_7B, 64, coarse=True)


def test_the_command_has_a_coarse_form(capsys):
    assert (
        main(
            ["--servers", "3", "--requests", "60", "--rate", "5", "--dispatch_method", "lottery", "--coarse"]
        )
        == 0
    )
    assert capsys.readouterr().out.splitlines()[1].split()[0] == "lottery"


def test_the_rounds_of_a_stretch_end_when_their_times_say():
    stretch: Stretch = Stretch(5.0, 40, 0.01, 0.001)
    ends, now = [], 5.0
    for number in range(40):
        now += 0.01 + number * 0.001
        ends.append(now)
        assert stretch.after(number + 1) == pytest.approx(now)
        assert stretch.over(now - 1e-6) == number == stretch.over(now - 1e-3)
    first, second = stretch.split(7)
    assert first.end == second.start == pytest.approx(ends[6]) and second.end == pytest.approx(ends[7])


def test_what_comes_takes_back_all_but_the_round_that_runs_and_the_next():
    flight: Flight = Flight(A100_7B)
    flight.add(0.0, 10, 1, 100, 0, [])
    assert not flight.takes_more and flight.cut(0.009) == 8
    assert len(flight) == 2 and flight.cut(0.009) == 0
    flight.take()
    flight.add(0.0095, 5, 1, 102, 0, [])
    assert not flight.takes_more and flight.cut(0.0096) == 4
