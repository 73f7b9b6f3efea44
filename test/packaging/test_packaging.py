"""Pins, ranges, the Makefile and what is shipped agree with each other."""

import ast
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
TORCH_EXTRAS = ("nvidia-", "cuda-")
"""What a CUDA build of torch brings along: its own business."""


def pins(name: str) -> dict[str, str]:
    """Package -> version, of the lines that hold on this machine."""
    found = {}
    for line in (ROOT / name).read_text().splitlines():
        if line and not line.startswith(("#", "-")):
            line, _, marker = line.partition(";")
            if marker and not Marker(marker).evaluate():
                continue
            package, _, version = line.strip().partition("==")
            assert version, f"{name}: {line} is not an exact pin"
            assert canonicalize_name(package) not in found, f"{name}: {package} is pinned twice"
            found[canonicalize_name(package)] = version
    return found


def setup_requirements() -> tuple[list[Requirement], dict[str, list[Requirement]]]:
    """install_requires and extras_require, as setup.py passes them to setup()."""
    scope: dict[str, object] = {"__file__": str(ROOT / "setup.py"), "__name__": "setup"}
    passed: dict[str, object] = {}
    import setuptools

    original = setuptools.setup
    setuptools.setup = lambda **arguments: passed.update(arguments)  # type: ignore[assignment]
    try:
        code = compile((ROOT / "setup.py").read_text(), str(ROOT / "setup.py"), "exec")
        exec(code, scope)
    finally:
        setuptools.setup = original
    core = [Requirement(text) for text in passed["install_requires"]]  # type: ignore[attr-defined]
    extras = passed["extras_require"]
    return core, {name: [Requirement(text) for text in texts] for name, texts in extras.items()}  # type: ignore[attr-defined]


CORE, EXTRAS = setup_requirements()
RUN, DEV = pins("requirements.txt"), pins("requirements-dev.txt")


def test_the_core_has_at_most_twenty_direct_dependencies() -> None:
    assert len(CORE) <= 20


def test_every_direct_dependency_is_pinned_inside_its_range() -> None:
    for requirement in (
        CORE
        + EXTRAS["constraints"]
        + EXTRAS["tokenizers"]
        + EXTRAS["cpu"]
        + EXTRAS["vision"]
        + EXTRAS["chat"]
        + EXTRAS["cluster"]
        + EXTRAS["otel"]
    ):
        assert requirement.specifier.contains(RUN[canonicalize_name(requirement.name)]), requirement
    for requirement in EXTRAS["test"] + EXTRAS["bench"]:
        assert requirement.specifier.contains((RUN | DEV)[canonicalize_name(requirement.name)]), requirement


def test_torch_is_the_first_pin_because_pip_must_not_look_for_another() -> None:
    assert list(RUN)[:3] == ["torch", "triton", "numpy"]


def test_machines_with_a_gpu_get_the_pinned_packages() -> None:
    wheels = pins("tools/gpu_packages.txt")
    assert wheels.items() <= (RUN | DEV).items() and "llguidance" in wheels


def test_the_lock_is_closed() -> None:
    """Whatever a pinned package needs on this Python is pinned too, within the range it asks for."""
    locked = RUN | DEV
    wanted = [(name, "") for name in locked]
    wanted += [(canonicalize_name(r.name), extra) for r in CORE for extra in r.extras]
    seen = set(wanted)
    while wanted:
        name, extra = wanted.pop()
        for text in importlib.metadata.distribution(name).requires or []:
            need = Requirement(text)
            if need.marker is not None and not need.marker.evaluate({"extra": extra}):
                continue
            other = canonicalize_name(need.name)
            if name == "torch" and other.startswith(TORCH_EXTRAS):
                continue
            assert other in locked, f"{name} needs {need}, which is not pinned"
            assert need.specifier.contains(locked[other], prereleases=True), f"{name} needs {need}"
            for inner in [(other, ""), *((other, e) for e in need.extras)]:
                if inner not in seen:
                    seen.add(inner)
                    wanted.append(inner)


def test_the_environment_is_the_locked_one() -> None:
    for name, version in (RUN | DEV).items():
        installed = importlib.metadata.version(name).split("+")[0]
        assert installed == version, f"{name} is {installed}, pinned {version}: run `make env`"


def imported_packages(folder: Path) -> set[str]:
    names = set()
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
                names.add(node.module.split(".")[0])
    return names - set(sys.stdlib_module_names)


def test_the_package_imports_only_what_it_declares() -> None:
    declared = {
        canonicalize_name(r.name)
        for r in CORE
        + EXTRAS["constraints"]
        + EXTRAS["tokenizers"]
        + EXTRAS["vision"]
        + EXTRAS["cpu"]
        + EXTRAS["chat"]
        + EXTRAS["cluster"]
        + EXTRAS["otel"]
    }
    # starlette is fastapi's foundation and part of its interface; tokenizer files of every kind name their library;
    # the simulator draws where the extra `bench` is installed, and says so where it is not; type checkers know _typeshed
    assert any(r.name == "matplotlib" for r in EXTRAS["bench"])
    allowed = declared | {"lightllm", "matplotlib", "starlette", "yaml", "zmq", "_typeshed"}
    owners = importlib.metadata.packages_distributions()
    unknown = [
        name
        for name in imported_packages(ROOT / "lightllm")
        if name not in allowed and not declared & {canonicalize_name(o) for o in owners.get(name, [])}
    ]
    assert unknown == []


def test_the_makefile_runs_only_files_that_exist() -> None:
    text = (ROOT / "Makefile").read_text()
    paths = set(re.findall(r"(?:tools|test)/[\w/]+\.py|requirements[\w-]*\.txt|setup\.py", text))
    assert "tools/check_layers.py" in paths and "requirements-dev.txt" in paths
    assert [path for path in sorted(paths) if not (ROOT / path).exists()] == []


@pytest.mark.skipif(shutil.which("make") is None, reason="no make")
def test_make_knows_every_promised_target() -> None:
    for target in ("env", "serve", "test", "soak", "bench", "docs", "clean"):
        done = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    served = subprocess.run(
        ["make", "-n", "serve", "ARGS=--tp 1"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "-m lightllm.server.api_server --host 127.0.0.1 --port 8080 --tp 1" in served.stdout


def test_continuous_integration_runs_make_test() -> None:
    script = ROOT / ".ci/run"
    assert os.access(script, os.X_OK)
    lines = script.read_text().splitlines()
    assert (
        lines[0] == "#!/usr/bin/env bash" and "set -euo pipefail" in lines and lines[-1] == "exec make test"
    )


def test_the_wheel_holds_the_package_and_its_data_alone(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    shutil.copytree(ROOT / "lightllm", source / "lightllm", ignore=shutil.ignore_patterns("__pycache__"))
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "-q",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        str(tmp_path),
        str(source),
    ]
    subprocess.run(command, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("lightllm-*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0].split("-")[0] for name in names} == {"lightllm"}
    shipped = {name for name in names if name.startswith("lightllm/")}
    missing = {str(path.relative_to(ROOT)) for path in (ROOT / "lightllm").rglob("*") if path.is_file()
               and "__pycache__" not in path.parts} - shipped  # fmt: skip
    assert missing == set()
