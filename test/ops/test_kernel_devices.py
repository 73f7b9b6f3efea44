"""The kernels' tests themselves hold on a GPU as far as devices go: no tensor of the CPU beside one of the GPU."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

TEST = Path(__file__).parent.parent


def pretend(*arguments: str) -> subprocess.CompletedProcess:
    paths = os.pathsep.join([str(TEST.parent), str(TEST)])
    plugin = ["-p", "support.pretended_gpu", "-n", "0", "--tb=short", "-p", "no:cacheprovider"]
    return subprocess.run(
        [sys.executable, "-m", "pytest", *plugin, *arguments],
        cwd=TEST,
        env=os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )


@pytest.mark.slow
def test_no_test_of_a_kernel_mixes_devices() -> None:
    run = pretend("ops/triton", "--ignore=ops/triton/test_compile.py")
    assert run.returncode == 0, run.stdout[-8000:]
    assert "passed" in run.stdout or "[100%]" in run.stdout


MISTAKES = """
import torch
from support.kernels import DEVICE
from lightllm.ops.triton.rms_norm import rms_norm
from lightllm.ops.triton.layer_norm import layer_norm
from lightllm.ops.triton.sample import greedy_tokens, sample_greedy

LOGITS = torch.randn(2, 100)

def test_passes_one_kernel_twice():
    x, weight = torch.randn(3, 64).to(DEVICE), torch.ones(64, device=DEVICE)
    assert torch.equal(rms_norm(x, weight, 1e-5), rms_norm(x, weight, 1e-5))

def test_mixes_a_tensor_of_the_cpu_in():
    torch.randn(3, 64).to(DEVICE) + torch.randn(64)

def test_gives_a_kernel_a_tensor_of_the_cpu():
    rms_norm(torch.randn(3, 64).to(DEVICE), torch.ones(64), 1e-5)

def test_reads_its_memory():
    torch.zeros(3, device=DEVICE).numpy()

def test_wants_equal_floats_of_two_variants():
    logits = LOGITS.to(DEVICE)
    found = sample_greedy(logits, torch.empty_like(logits))[1]
    assert not (greedy_tokens(logits)[1][0] == found[0]) or True

def test_wants_equal_floats_of_two_kernels():
    x, weight = torch.randn(3, 64).to(DEVICE), torch.ones(64, device=DEVICE)
    torch.equal(rms_norm(x, weight, 1e-5), layer_norm(x, weight, weight, 1e-5))
"""


def test_what_would_fail_on_a_gpu_fails_on_the_pretended_one(tmp_path: Path) -> None:
    file = tmp_path / "test_mistakes.py"
    file.write_text(MISTAKES)
    run = pretend(str(file), "-rA", "-c", "/dev/null", "--rootdir", str(tmp_path))
    found = re.findall(r"^(PASSED|FAILED).*::test_(\w+)", run.stdout, re.MULTILINE)
    verdicts = {name: verdict for verdict, name in found}
    assert verdicts == {
        "passes_one_kernel_twice": "PASSED",
        "mixes_a_tensor_of_the_cpu_in": "FAILED",
        "gives_a_kernel_a_tensor_of_the_cpu": "FAILED",
        "reads_its_memory": "FAILED",
        "wants_equal_floats_of_two_variants": "FAILED",
        "wants_equal_floats_of_two_kernels": "FAILED",
    }, run.stdout[-6000:] + run.stderr[-2000:]
