"""The GPU report runs through on a CPU with tiny shapes, so that it is known to work when there is a GPU."""

import json
import sys
import weakref

import pytest
import torch
from benchmark import gpu_report
from benchmark.gpu.rounds import loaded, options


def dry_run(tmp_path, monkeypatch, *only):
    monkeypatch.setattr(sys, "argv", ["gpu_report.py", "--dry", "--out", str(tmp_path), *only])
    status = gpu_report.main()
    return status, json.loads((tmp_path / "dry_run.json").read_text()), (tmp_path / "dry_run.md").read_text()


@pytest.mark.parametrize("section", ["Llama-7B, round by round", "attention", "Qwen3-0.6B"])
def test_a_dry_run_has_every_figure_of_a_section_with_its_limit(tmp_path, monkeypatch, section):
    status, report, table = dry_run(tmp_path, monkeypatch, "--only", section)
    assert status == 0
    limits, *sections = report["sections"]
    assert limits["title"] == "Limits" and sections
    for found in sections:
        assert found["figures"] and not found["error"]
        assert all(figure["value"] >= 0 for figure in found["figures"])
        assert f"## {found['title']}" in table


def test_a_section_that_fails_is_recorded_and_the_others_go_on(tmp_path, monkeypatch):
    def fail(*args):
        raise RuntimeError("no such kernel")

    monkeypatch.setattr(gpu_report.attention, "decode", fail)
    status, report, table = dry_run(tmp_path, monkeypatch, "--only", "attention")
    assert status == 1
    by_title = {section["title"]: section for section in report["sections"]}
    assert by_title["Decode attention"]["error"] == "RuntimeError: no such kernel"
    assert by_title["Prefill attention"]["figures"]
    assert "Failed: RuntimeError: no such kernel" in table


def test_what_a_section_had_when_it_was_interrupted_is_written(tmp_path, monkeypatch):
    measured = gpu_report.attention.prefill

    def interrupted(*args):
        yield next(measured(*args))
        raise KeyboardInterrupt

    monkeypatch.setattr(gpu_report.attention, "prefill", interrupted)
    with pytest.raises(KeyboardInterrupt):
        dry_run(tmp_path, monkeypatch, "--only", "attention")
    report = json.loads((tmp_path / "dry_run.json").read_text())
    by_title = {section["title"]: section for section in report["sections"]}
    assert len(by_title["Decode attention"]["figures"]) == 1 and not by_title["Decode attention"]["error"]
    assert len(by_title["Prefill attention"]["figures"]) == 1
    assert by_title["Prefill attention"]["error"] == "interrupted"


def test_a_report_in_several_runs_keeps_what_each_of_them_measured(tmp_path, monkeypatch):
    _, first, _ = dry_run(tmp_path, monkeypatch, "--only", "decode attention")
    _, both, table = dry_run(tmp_path, monkeypatch, "--only", "prefill attention", "--add")
    assert [s["title"] for s in both["sections"]] == ["Limits", "Decode attention", "Prefill attention"]
    assert both["sections"][1] == first["sections"][1] and both["sections"][2]["figures"]
    _, late, _ = dry_run(tmp_path, monkeypatch, "--only", "attention", "--add", "--budget", "0")
    assert late["sections"] == both["sections"]
    assert "## Decode attention" in table and "## Prefill attention" in table
    _, alone, _ = dry_run(tmp_path, monkeypatch, "--only", "prefill attention")
    assert [s["title"] for s in alone["sections"]] == ["Limits", "Prefill attention"]


def test_a_model_and_its_kv_memory_are_gone_when_its_measurements_are_done():
    """Also while the function that measured goes on, as transformers' turn does."""
    sizes = {"max_total_token_num": 400, "running_max_req_size": 4, "max_req_total_len": 64}
    with loaded(gpu_report.DRY_SHAPE, **sizes, **options(torch.device("cpu"))) as (bench, _):
        bench.enter(2, 8)
        bench.pipelined(2, 8, 3)
        held = [weakref.ref(bench.backend.memory.kv[0].data), weakref.ref(bench.backend.model)]
        assert all(reference() is not None for reference in held)
    assert bench.device.type == "cpu"
    assert [reference() for reference in held] == [None, None]


def test_no_section_begins_after_the_budget(tmp_path, monkeypatch):
    _, report, _ = dry_run(tmp_path, monkeypatch, "--budget", "0", "--only", "attention")
    assert all("time was up" in section["error"] for section in report["sections"])


@pytest.mark.slow
def test_the_whole_dry_run(tmp_path, monkeypatch):
    status, report, _ = dry_run(tmp_path, monkeypatch)
    assert status == 0 and not [section for section in report["sections"] if section["error"]]
