"""tools/resolve_ptx_version, with an nvidia-smi that names any GPU and Triton's real assembler."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "tools/resolve_ptx_version"
SHOW = "import os; print(os.environ.get('TRITON_PTXAS_PATH'), os.environ.get('TRITON_PTXAS_BLACKWELL_PATH'))"


def run(folder: Path, capability: str | None, **environment: str) -> subprocess.CompletedProcess:
    folder.mkdir(exist_ok=True)
    if capability is not None:
        smi = folder / "nvidia-smi"
        smi.write_text(f"#!/bin/sh\nprintf '{capability}\\n'\n")
        smi.chmod(0o755)
    path = f"{folder}:/usr/bin:/bin"
    return subprocess.run(
        ["bash", str(SCRIPT), sys.executable, "-c", SHOW],
        env={"PATH": path, **environment}, capture_output=True, text=True, timeout=60,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("capability", "name"), [("8.0\\n9.0", "ptxas"), ("8.9", "ptxas"), ("10.0", "ptxas-blackwell")]
)
def test_tritons_own_assembler_is_taken_where_it_knows_the_gpu(
    tmp_path: Path, capability: str, name: str
) -> None:
    done = run(tmp_path, capability)
    chosen = done.stdout.split()
    assert done.returncode == 0 and chosen[0] == chosen[1], done.stderr
    assert Path(chosen[0]).name == name and "triton" in chosen[0]


def test_an_assembler_that_does_not_know_the_gpu_is_passed_over(tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "cuda/bin/ptxas"
    new.parent.mkdir(parents=True)
    old.write_text("#!/bin/sh\nexit 1\n")
    new.write_text('#!/bin/sh\ncase "$1" in *sm_777) exit 0 ;; *) exit 1 ;; esac\n')
    for file in (old, new):
        file.chmod(0o755)
    done = run(tmp_path / "bin", "77.7", TRITON_PTXAS_PATH=str(old), CUDA_HOME=str(tmp_path / "cuda"))
    assert done.stdout.split() == [str(new)] * 2, done.stderr


def test_a_gpu_that_nothing_knows_ends_with_a_message(tmp_path: Path) -> None:
    done = run(tmp_path, "77.7")
    assert done.returncode == 1 and "sm_777" in done.stderr and not done.stdout


def test_without_a_gpu_the_command_runs_as_it_is(tmp_path: Path) -> None:
    if os.path.exists("/usr/bin/nvidia-smi"):
        pytest.skip("this machine has an nvidia-smi")
    done = run(tmp_path, None)
    assert done.returncode == 0 and done.stdout.split() == ["None", "None"]
