"""Many schedulers behind the real dispatch policies."""

from __future__ import annotations

import dataclasses

import pytest

from lightllm.cluster.ask import blocks_of
from lightllm.cluster.dispatch.policies import POLICIES
from lightllm.simulate.fleet import Fleet, FleetReport, Incident, _BlockKeys
from lightllm.simulate.fleet_cli import _scheduler_options as scheduler_options
from lightllm.simulate.fleet_cli import main, make_parser, make_setting, read_incidents, run_fleet
from lightllm.simulate.load import Setting
from lightllm.simulate.synthetic import Lengths, TenantTrace


def setting(trace: str = "synthetic:tenants", requests: int = 120) -> Setting:
    options = make_parser().parse_args(["--trace", trace, "--requests", str(requests)])
    found = make_setting(scheduler_options(options))
    if trace == "synthetic:tenants":  # as many as four servers have room for, and one has not
        found = dataclasses.replace(found, trace=TenantTrace(tenants=60, answers=Lengths(30, 0.7, 128)))
    return found


def run(name: str, rate: float = 10.0, servers: int = 4, incidents=(), **more) -> FleetReport:
    return run_fleet(setting(**more), servers, name, rate, incidents)


@pytest.mark.parametrize("name", POLICIES)
def test_every_request_ends_once_and_no_load_is_left_over(name):
    report = run(name)
    assert (report.finished, report.refused, report.left_over) == (120, 0, 0)


@pytest.mark.parametrize("name", ["prefix_aware", "lottery"])
def test_a_run_can_be_repeated(name):
    assert run(name) == run(name)


def test_prefixes_are_found_again_by_the_policy_that_looks_for_them():
    aware, robin = run("prefix_aware", 16.0, requests=250), run("round_robin", 16.0, requests=250)
    assert aware.hit_rate > 1.5 * robin.hit_rate and aware.ttft_p50 < robin.ttft_p50 / 2
    assert aware.hot_spot < 1.5


@pytest.mark.parametrize(
    "trace",
    [pytest.param(trace, marks=pytest.mark.slow) for trace in ("synthetic:sharegpt", "synthetic:burst")],
)
def test_where_nothing_is_shared_looking_for_prefixes_costs_nothing(trace):
    aware, least = (
        run(name, 60.0, 4, trace=trace, requests=800) for name in ("prefix_aware", "least_tokens")
    )
    assert aware.throughput_rps >= 0.98 * least.throughput_rps
    assert aware.ttft_p99 <= 1.1 * least.ttft_p99


@pytest.mark.parametrize("name", ["consistent_hash", "prefix_aware", "round_robin"])
def test_requests_of_a_server_that_dies_go_on_on_the_others(name):
    report = run(name, 20.0, incidents=[Incident(4.0, 1)])
    assert report.finished == 120 and report.moved > 0 and report.left_over == 0


def test_a_slow_server_gets_less_where_load_is_looked_at():
    slow = [Incident(0.0, 0, 4.0)]
    robin, least = (run(name, 14.0, incidents=slow) for name in ("round_robin", "least_tokens"))
    assert least.ttft_p99 < robin.ttft_p99 / 2


def test_the_command_prints_a_line_for_each_policy_and_writes_the_figures(tmp_path, capsys):
    path = tmp_path / "figures.json"
    words = [
        "--servers",
        "2",
        "--requests",
        "60",
        "--rate",
        "5",
        "--dispatch_method",
        "lottery",
        "prefix_aware",
        "--json",
        str(path),
    ]
    assert main(words) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["policy", "lottery", "prefix_aware"]
    assert '"finished": 60' in path.read_text()


@pytest.mark.parametrize(
    "words", [["--dies", "9:1"], ["--dies", "x"], ["--slow", "0:0"], ["--dies", "0:1", "1:1", "--servers", "2"], ["--trace", "synthetic:none"]]
)  # fmt: skip
def test_wrong_options_are_one_line(words, capsys):
    assert main(words) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_incidents_are_read_from_words():
    options = make_parser().parse_args(["--dies", "1:30", "--slow", "0:2.5"])
    assert read_incidents(options) == [Incident(30.0, 1), Incident(0.0, 0, 2.5)]


def test_a_fleet_of_one_is_a_server():
    one = setting(requests=50)
    fleet = Fleet(1, "prefix_aware", one.config, one.latency, one.max_new_tokens)
    assert fleet.run(one.trace.requests(50, 2.0, 0)).finished == 50


def test_block_keys_that_are_remembered_are_those_of_the_controller():
    keys = _BlockKeys(most=20)
    shared = bytes(range(256)) * 12
    for number in range(40):
        data = shared[: 256 * (number % 13)] + bytes([number]) * 900
        assert keys.of(data) == blocks_of(data)
    assert len(keys._known) <= 20
