"""tools/gpu_smoke.py runs through without a GPU, and says what is wrong when something is."""

import importlib.util
import os
import sys
from pathlib import Path

import pytest
import torch
from support.kernels import INTERPRETED

from lightllm.ops.attention_backends.triton import TritonAttention
from lightllm.ops.triton import launch

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(not INTERPRETED, reason="on a GPU it is run as it is")


@pytest.fixture(scope="module")
def smoke():
    spec = importlib.util.spec_from_file_location("gpu_smoke", ROOT / "tools/gpu_smoke.py")
    module, path = importlib.util.module_from_spec(spec), list(sys.path)
    spec.loader.exec_module(module)
    yield module
    sys.path[:] = path


def test_it_ends_with_ok(smoke, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["gpu_smoke.py", "--dry"])
    assert smoke.main() == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("SMOKE OK after ")
    assert launch.PDL_VARIABLE not in os.environ


def test_attention_that_is_off_or_changes_with_dependent_launch_is_named(smoke, monkeypatch):
    decode, wrong = TritonAttention.decode, []

    def off(call):
        decode(call)
        if launch.PDL_VARIABLE in os.environ:
            call.out[0, 0, 0] += 1e-6
        elif len(wrong) == 1:
            call.out.mul_(1.1)
        wrong.append(call)

    monkeypatch.setattr(TritonAttention, "decode", staticmethod(off))
    problems = smoke.attention(True)
    assert [problem.partition(",")[0] for problem in problems] == ["decode attention"] * 3
    assert "is off by" in problems[1] and all("PDL changes its bits" in problems[place] for place in (0, 2))


def test_other_tokens_with_graphs_are_named(smoke, monkeypatch):
    tokens = iter([[[1, 2]], [[1, 3]], [[1, 3]], [[1, 3]]])
    monkeypatch.setattr(smoke, "_tokens", lambda *arguments: next(tokens))
    assert smoke.backend(True) == ["graphs and PDL: other tokens than with neither"]


def test_a_check_that_raises_costs_the_others_nothing(smoke, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["gpu_smoke.py", "--dry"])
    monkeypatch.setattr(smoke, "attention", lambda dry: torch.ones(2) @ torch.ones(3))
    monkeypatch.setattr(smoke, "backend", lambda dry: [])
    assert smoke.main() == 1
    assert "attention: RuntimeError" in capsys.readouterr().out.splitlines()[-1]
