"""Every kernel compiles for the architectures it is shipped for, without spills; and the check itself can fail."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]


def compile_kernels(*arguments: str) -> subprocess.CompletedProcess:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "test")])
    command = [sys.executable, str(ROOT / "tools/compile_kernels.py"), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1800)


def test_every_kernel_compiles_for_its_architectures_and_spills_no_registers(tmp_path: Path) -> None:
    done = compile_kernels("--write", str(tmp_path / "report.json"))
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    cases = json.loads((tmp_path / "report.json").read_text())["cases"]
    assert {"80", "89", "90", "100"} <= {name for case in cases for name in case["registers"]}
    documented = json.loads((ROOT / "docs/kernels.json").read_text())["cases"]
    missing = {(c["kernel"], c["case"]) for c in cases} - {(c["kernel"], c["case"]) for c in documented}
    assert not missing, "docs/kernels.json is stale: run `make test-kernels`"


MUST_NOT_SHIP = {
    "spilling": ("one warp for 8192 elements", "spills: a stack frame of"),
    "greedy": ("eight stages of 32 KiB", "bytes of shared memory, at most"),
    "broken": ("broken", "Error"),
    "hasty": ("no wait", "dependent launch without griddepcontrol.wait"),
}
"""Modules: the label of the kernel's case, and what is wrong with it."""


def test_kernels_that_must_not_ship_fail_the_check() -> None:
    modules = [word for name in MUST_NOT_SHIP for word in ("--module", f"support.bad_kernels.{name}")]
    done = compile_kernels(*modules, "--jobs", "1")
    assert done.returncode == 1, done.stdout + done.stderr
    failed = [line for line in done.stdout.splitlines() if line.startswith("FAILED")]
    for label, problem in MUST_NOT_SHIP.values():
        assert any(f"({label})" in line and problem in line for line in failed), done.stdout + done.stderr


def test_products_that_wait_for_each_other_are_told_from_those_that_are_issued_together() -> None:
    """As ptxas writes both: no small kernel was found with which it surely writes the first."""
    spec = importlib.util.spec_from_file_location("compile_kernels", ROOT / "tools/compile_kernels.py")
    assert spec is not None and spec.loader is not None
    tool = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = tool  # its dataclasses look themselves up there
    try:
        spec.loader.exec_module(tool)
    finally:
        del sys.modules[spec.name]
    arrive, wait = "WARPGROUP.ARRIVE ;\n", "WARPGROUP.DEPBAR.LE gsb0, 0x0 ;\n"
    product = "HGMMA.64x128x16.F32.BF16 R24, gdesc[UR16], R24"
    alone = f"{arrive}{product}, gsb0 ;\n{wait}"
    assert tool.serialized(alone * 8)
    assert not tool.serialized(f"{arrive}{product} ;\n{product} ;\n{product}, gsb0 ;\n{wait}")
    assert not tool.serialized(alone) and not tool.serialized("HMMA.16816.F32.BF16 R4, R8, R2, R4 ;\n")
