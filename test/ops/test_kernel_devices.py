"""The kernels' tests themselves hold on a GPU as far as devices go: no tensor of the CPU beside one of the GPU."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

TEST = Path(__file__).parent.parent


@pytest.mark.slow
def test_no_test_of_a_kernel_mixes_devices() -> None:
    paths = os.pathsep.join([str(TEST.parent), str(TEST)])
    plugin = ["-p", "support.pretended_gpu", "-n", "0", "--tb=short"]
    folder = ["ops/triton", "--ignore=ops/triton/test_compile.py"]
    run = subprocess.run(
        [sys.executable, "-m", "pytest", *plugin, *folder],
        cwd=TEST,
        env=os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout[-8000:]
    assert "passed" in run.stdout or "[100%]" in run.stdout
