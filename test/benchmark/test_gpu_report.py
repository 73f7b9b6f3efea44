"""The GPU report runs through on a CPU with tiny shapes, so that it is known to work when there is a GPU."""

import json
import sys
import weakref

import pytest
import torch
from benchmark import gpu_report
from benchmark.gpu.clock import Limits
from benchmark.gpu.rounds import CHUNK, DECODE_CASES, ROWS, loaded, options
from benchmark.gpu.sizes import fitting, needed, slot_bytes, weight_bytes
from model.test_llama import SHAPES


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


def test_a_section_whose_process_dies_is_marked_and_the_rates_are_measured_once(tmp_path, monkeypatch):
    calls = []

    def in_this_process(title, given, rates, left):
        calls.append((title, rates))
        if title == "Prefill attention":
            return "died of SIGSEGV"
        add = ["--add", "--rates", *rates] if rates else []
        monkeypatch.setattr(sys, "argv", ["", "--dry", "--only", title, "--out", str(given.out), *add])
        assert gpu_report.main() == 0
        return ""

    monkeypatch.setattr(gpu_report, "run_section", in_this_process)
    status, report, table = dry_run(tmp_path, monkeypatch, "--apart", "--only", "attention")
    assert status == 1
    assert [title for title, _ in calls] == ["Limits", "Decode attention", "Prefill attention"]
    assert [len(rates) for _, rates in calls] == [0, 2, 2]
    limits, decode, prefill = report["sections"]
    assert decode["figures"][0]["limit"] == pytest.approx(limits["figures"][0]["value"])
    assert not decode["error"] and prefill["error"] == "died of SIGSEGV" and "Failed: died" in table


@pytest.mark.slow
def test_each_section_has_a_process_of_its_own_and_one_that_fails_costs_the_others_nothing(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(gpu_report, "TITLES", ["Limits", "Decode attention", "Prefill attention"])
    monkeypatch.setattr(gpu_report, "SECONDS", {"Prefill attention": 0.05})
    status, report, table = dry_run(tmp_path, monkeypatch, "--apart", "--only", "attention")
    assert status == 1
    limits, decode, prefill = report["sections"]
    assert [limits["title"], decode["title"], prefill["title"]] == gpu_report.TITLES
    assert decode["figures"] and not decode["error"]
    assert decode["figures"][0]["limit"] == pytest.approx(limits["figures"][0]["value"])
    assert prefill["error"] == "ended after 0 s" and "Failed: ended after 0 s" in table


FREE = {80: 84.9e9 - 0.6e9, 141: 149.8e9 - 0.6e9}
"""Bytes of an H100's and an H200's memory that are free beside a context."""


@pytest.mark.parametrize("name", ["llama-7b", "llama-3.1-8b"])
@pytest.mark.parametrize("memory", FREE)
def test_what_is_measured_fits_on_the_gpu(name, memory):
    shape, free = SHAPES[name], FREE[memory]
    cases = fitting(shape, DECODE_CASES, CHUNK, ROWS, free)
    left_out = [case for case in DECODE_CASES if case not in cases]
    assert left_out == ([DECODE_CASES[2]] if (name, memory) == ("llama-7b", 80) else [])
    slots = max(CHUNK, *(case.rows * case.context for case in cases))
    assert needed(shape, slots, CHUNK, ROWS) < 0.86 * free


@pytest.mark.parametrize("memory", FREE)
def test_every_other_section_leaves_room_for_kv_memory(memory):
    """Their KV memory takes what is left: enough for the requests that run at once."""
    for name in ("qwen3-0.6b", "qwen3-14b", "llama-7b", "llama-3.1-8b"):
        shape = SHAPES[name]
        room = 0.9 * FREE[memory] - needed(shape, 0, CHUNK, ROWS)
        assert room / slot_bytes(shape) > 64 * 1024


def test_bytes_of_shapes_are_those_of_models(tmp_path):
    """In the shape of a dry run, where the model can be made; it computes in float32 here."""
    sizes = {"max_total_token_num": 400, "running_max_req_size": 4, "max_req_total_len": 64}
    with loaded(gpu_report.DRY_SHAPE, **sizes, **options(torch.device("cpu"))) as (bench, _):
        assert bench.kv_bytes == 2 * slot_bytes(gpu_report.DRY_SHAPE)
        whole = bench.weight_bytes + bench.backend.model.embed_tokens.nbytes
        assert whole == pytest.approx(2 * weight_bytes(gpu_report.DRY_SHAPE), rel=0.01)


def test_the_limit_of_a_round_is_the_sum_of_its_phases():
    limits = Limits(bandwidth=4.0e12, flops=8.0e14)
    assert limits.seconds(16e9, 1e12, 8e9) == pytest.approx(4e-3 + 2e-3)  # reading weights takes longer
    assert limits.seconds(16e9, 8e12, 8e9) == pytest.approx(10e-3 + 2e-3)  # products take longer


def test_no_section_begins_after_the_budget(tmp_path, monkeypatch):
    _, report, _ = dry_run(tmp_path, monkeypatch, "--budget", "0", "--only", "attention")
    assert all("time was up" in section["error"] for section in report["sections"])


@pytest.mark.slow
def test_the_whole_dry_run(tmp_path, monkeypatch):
    status, report, _ = dry_run(tmp_path, monkeypatch)
    assert status == 0 and not [section for section in report["sections"] if section["error"]]
