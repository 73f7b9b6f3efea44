"""Compiled CPU kernels: where they are kept, and what is done without."""

import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lightllm.ops.cpu import SYMBOLS, library
from lightllm.ops.cpu.library import VARIABLE, load_kernels
from lightllm.ops.cpu_kind import CpuKind, chosen, detect


@pytest.fixture(autouse=True)
def _anew() -> Iterator[None]:
    load_kernels.cache_clear()
    yield
    load_kernels.cache_clear()


def refuse_to_compile(folder: Path) -> None:
    raise RuntimeError("no compiler today")


def test_where_the_compiler_fails_torch_computes_and_the_log_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    monkeypatch.setattr(library, "_compile_into", refuse_to_compile)
    with caplog.at_level(logging.WARNING):
        assert load_kernels() == {}
    assert "no compiler today" in caplog.text
    assert [file.name for file in tmp_path.iterdir()] == ["lock"]


@pytest.mark.parametrize("mode", [0o777, 0o770])
def test_a_folder_that_others_can_write_to_is_not_read(
    mode: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tmp_path.chmod(mode)
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    with caplog.at_level(logging.WARNING):
        assert load_kernels() == {}
    assert VARIABLE in caplog.text and not list(tmp_path.iterdir())


def test_a_link_in_place_of_the_folder_is_not_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    monkeypatch.setenv(VARIABLE, str(tmp_path / "link"))
    assert load_kernels() == {} and not list((tmp_path / "real").iterdir())


def test_without_numba_there_are_no_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert load_kernels() == {}


def test_kernels_are_compiled_once_and_loaded_without_numba() -> None:
    """A second process, as a second server is."""
    assert load_kernels()
    code = (
        "import sys; from lightllm.ops.cpu import library; library._compile_into = None; "
        "print(sorted(library.load_kernels()), 'numba' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == f"{sorted(load_kernels())} False"


@pytest.mark.slow
@pytest.mark.parametrize("kind", [CpuKind.AVX2, CpuKind.AVX512_BF16])
def test_kernels_for_a_lesser_processor(kind: CpuKind, tmp_path: Path) -> None:
    """What they compute is right, and they are kept apart from those of this processor."""
    if detect() <= kind:
        pytest.skip(f"{kind.name} is not less than this processor")
    environ = os.environ | {VARIABLE: str(tmp_path), "LIGHTLLM_CPU_KIND": kind.name.lower()}
    names = ("decode_attention", "row_kernels", "panel_linear", "block_attention", "widened_linear")
    tests = [str(Path(__file__).with_name(f"test_{name}.py")) for name in names]
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", *tests]
    run = subprocess.run(command, env=environ, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout
    (symbols,) = tmp_path.glob(f"*/{SYMBOLS}")
    of_bf16 = ("few_bits", "panel", "block", "coded", "widened_linear_bfloat16")  # instructions
    own = {name for name in load_kernels() if name.startswith(of_bf16)}
    expected = set(load_kernels()) - own | (own if kind == CpuKind.AVX512_BF16 else set())
    assert set(json.loads(symbols.read_text())) == expected


@pytest.mark.slow
def test_what_is_laid_out_for_a_matrix_unit_holds_without_one() -> None:
    if chosen() < CpuKind.AVX512_BF16:
        pytest.skip("softmax has instructions of AVX512-BF16")
    test = Path(__file__).parents[2]
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-p",
        "support.plain_tiles",
        "-q",
        "-n",
        "0",
        "ops/cpu/test_block_attention.py",
    ]
    environ = os.environ | {"PYTHONPATH": os.pathsep.join([str(test.parent), str(test)])}
    run = subprocess.run(command, cwd=test, env=environ, capture_output=True, text=True)
    assert run.returncode == 0 and "sss" in run.stdout, run.stdout  # decoding has a kernel of its own there
