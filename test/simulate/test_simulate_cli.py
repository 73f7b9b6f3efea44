"""The command line of the simulator."""

from __future__ import annotations

import json
import runpy
import sys

import pytest

from lightllm.simulate.cli import main


def test_it_prints_figures_and_writes_them_as_json(tmp_path, capsys):
    path = tmp_path / "out.json"
    arguments = ["--requests", "60", "--rate", "20", "--json", str(path), "--check", "5"]
    assert main(arguments) == 0
    report = json.loads(path.read_text())
    for key in ("goodput_rps", "throughput_rps", "pauses_per_request", "refused_share", "ttft_p50_s", "ttft_p99_s",
                "tpot_p50_s", "tpot_p99_s", "recomputed_tokens", "starvation", "memory", "scheduler_cpu"):  # fmt: skip
        assert key in report
    assert report["requests"] == 60
    assert report["options"]["policy"] == "past_future"
    assert report["limits"]["max_total_token_num"] == 120_000
    printed = capsys.readouterr().out
    assert "goodput" in printed and "refused" in printed


def test_options_reach_the_scheduler(tmp_path):
    path = tmp_path / "out.json"
    main(["--requests", "20", "--rate", "50", "--capacity", "9000", "--max-new-tokens", "300", "--policy", "aggressive",
          "--round_policy", "prefill_first", "--latency-model", "h200-8b", "--json", str(path)])  # fmt: skip
    report = json.loads(path.read_text())
    assert report["limits"]["schedule_policy"] == "aggressive"
    assert report["limits"]["round_policy"] == "prefill_first"
    assert report["limits"]["max_total_token_num"] == 9000
    assert report["latency_model"]["name"] == "h200-8b"


def test_overload_with_a_ttft_slo_refuses_and_shortens_the_wait(tmp_path):
    path = tmp_path / "out.json"
    overload = "--requests 500 --rate 60 --capacity 12000 --max-new-tokens 600".split() + [
        "--json",
        str(path),
    ]
    main(overload)
    without = json.loads(path.read_text())
    main([*overload, "--ttft_slo", "5"])
    with_slo = json.loads(path.read_text())
    assert without["refused_share"] == 0.0
    assert with_slo["refused_share"] > 0.2
    assert with_slo["ttft_p99_s"] < 0.5 * without["ttft_p99_s"]
    assert with_slo["limits"]["ttft_slo"] == 5.0


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--trace", "synthetic:chess"], "synthetic:chess"),
        (["--trace", "/nowhere/trace.csv"], "/nowhere/trace.csv"),
        (["--rate", "fast"], "--rate fast"),
        (["--rate", "-1"], "--rate -1"),
        (["--rate", "infx"], "--rate infx"),
        (["--rate", "recorded"], "recorded"),
        (["--latency-model", "abacus"], "abacus"),
    ],
)
def test_a_wrong_option_is_one_line_and_status_2(arguments, told, capsys):
    assert main([*arguments, "--requests", "10"]) == 2
    error = capsys.readouterr().err
    assert told in error
    assert error.count("\n") == 1


def test_the_old_module_name_starts_it(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["simulate", "--help"])
    with pytest.raises(SystemExit, match="0"):
        runpy.run_module("lightllm.router.simulate", run_name="__main__")
    assert "python -m lightllm.simulate" in capsys.readouterr().out
