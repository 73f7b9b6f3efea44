"""The tables and plots of the documentation, on a small scale."""

from __future__ import annotations

import json

import pytest

from lightllm.simulate import compare
from lightllm.simulate.cli import main

SMALL = ["--requests", "60", "--capacity", "1000", "--max-new-tokens", "300", "--rate", "50"]


@pytest.fixture
def trace(tmp_path):
    """A file of short requests."""
    path = tmp_path / "short.csv"
    rows = [f"{i},ChatGPT,{5 + i % 20},{3 + i * 7 % 20},0,API log" for i in range(60)]
    path.write_text(
        "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n" + "\n".join(rows)
    )
    return str(path)


def test_compare_prints_a_row_for_each_policy_and_draws_its_plots(trace, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    out = tmp_path / "out.json"
    assert (
        compare.main(
            [
                *SMALL,
                "--loads",
                "1",
                "1.5",
                "3",
                "--trace",
                trace,
                "--plots",
                str(tmp_path),
                "--json",
                str(out),
            ]
        )
        == 0
    )
    printed = capsys.readouterr().out
    found = json.loads(out.read_text())["found"]
    for name, reports in found.items():
        assert printed.count(f"| {name} |") == 2
        assert [report["rate_rps"] is None for report in reports] == [False, False, False, True]
        assert f"{reports[-1]['throughput_rps']:.2f}" in printed
    assert {"conservative", "aggressive", "past_future"} <= found.keys()
    for plot in ("goodput_short", "memory_short_conservative", "memory_short_past_future"):
        assert (tmp_path / f"{plot}.svg").read_text().startswith("<?xml")


def test_plots_are_the_same_from_run_to_run(trace, tmp_path):
    pytest.importorskip("matplotlib")
    for folder in ("a", "b"):
        assert main([*SMALL, "--trace", trace, "--plots", str(tmp_path / folder)]) == 0
    assert (tmp_path / "a/memory.svg").read_bytes() == (tmp_path / "b/memory.svg").read_bytes()
    assert not (tmp_path / "a/goodput.svg").exists()


def test_a_profile_can_be_read(tmp_path):
    import pstats

    path = tmp_path / "run.prof"
    assert main(["--requests", "20", "--rate", "5", "--profile", str(path)]) == 0
    names = {name for _, _, name in pstats.Stats(str(path)).stats}
    assert {"next_round", "apply"} <= names
