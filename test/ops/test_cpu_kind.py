"""What the processor is taken for: found in /proc/cpuinfo, capped by a variable, which the libraries are told as well."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lightllm.errors import InvalidOption
from lightllm.ops import cpu_kind
from lightllm.ops import linear as torch_linear
from lightllm.ops.cpu_kind import CpuKind, chosen, described, detect, library_variables

ZEN3 = "fpu sse2 avx f16c fma avx2 bmi2"
SKYLAKE = f"{ZEN3} avx512f avx512dq avx512cd avx512bw avx512vl"
ZEN5 = f"{SKYLAKE} avx512_vnni avx512_bf16"
SAPPHIRE_RAPIDS = f"{ZEN5} amx_bf16 avx512_fp16 amx_tile amx_int8"
PROCESSORS = [
    (ZEN3, CpuKind.AVX2), (SKYLAKE, CpuKind.AVX512), (ZEN5, CpuKind.AVX512_BF16), (SAPPHIRE_RAPIDS, CpuKind.AMX),
    ("fpu sse2 avx", CpuKind.OTHER), (f"{ZEN3} avx512f", CpuKind.AVX2), (f"{ZEN3} avx512_bf16", CpuKind.AVX2),
]  # fmt: skip


def machine(folder: Path, flags: str) -> Path:
    (folder / "proc").mkdir()
    one = f"processor\t: 0\nmodel name\t: a processor\nflags\t\t: {flags}\nbugs\t\t:\n"
    (folder / "proc/cpuinfo").write_text(f"{one}\n{one}\n")
    return folder


@pytest.mark.parametrize(("flags", "kind"), PROCESSORS)
def test_the_kind_is_the_last_whose_instructions_are_all_there(
    tmp_path: Path, flags: str, kind: CpuKind
) -> None:
    root = machine(tmp_path, flags)
    assert detect(root) == chosen({}, root) == kind
    assert library_variables({}, root) == {} and described({}, root) == kind.name.lower()


def test_another_architecture_is_left_to_the_libraries(tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/cpuinfo").write_text("processor : 0\nFeatures : fp asimd bf16\n")
    assert detect(tmp_path) == detect(tmp_path / "none") == CpuKind.OTHER
    assert library_variables({"LIGHTLLM_CPU_KIND": "avx2"}, tmp_path) == {}


@pytest.mark.parametrize("cap", ["avx2", "avx512", "avx512_bf16", "amx", "AVX2", " "])
@pytest.mark.parametrize(("flags", "kind"), PROCESSORS)
def test_the_variable_caps_and_never_raises(tmp_path: Path, flags: str, kind: CpuKind, cap: str) -> None:
    root, environ = machine(tmp_path, flags), {"LIGHTLLM_CPU_KIND": cap}
    wanted = CpuKind[cap.upper()] if cap.strip() else kind
    assert chosen(environ, root) == min(kind, wanted)
    assert bool(library_variables(environ, root)) == (wanted < kind)
    assert ("LIGHTLLM_CPU_KIND" in described(environ, root)) == (wanted < kind)


@pytest.mark.parametrize("value", ["avx", "sse4", "avx-512", "3", "other"])
def test_a_wrong_value_says_which_are_right(tmp_path: Path, value: str) -> None:
    for ask in (chosen, described, library_variables):
        with pytest.raises(
            InvalidOption, match=f"LIGHTLLM_CPU_KIND={value} .* avx2, avx512, avx512_bf16, amx"
        ):
            ask({"LIGHTLLM_CPU_KIND": value}, tmp_path)


@pytest.mark.parametrize(
    ("kind", "in_bf16"),
    [(CpuKind.AVX2, False), (CpuKind.AVX512, False), (CpuKind.AVX512_BF16, True), (CpuKind.AMX, True)],
)
def test_bf16_weights_are_computed_in_bf16_only_with_instructions_for_it(
    monkeypatch: pytest.MonkeyPatch, kind: CpuKind, in_bf16: bool
) -> None:
    """oneDNN supports bf16 from AVX512 on, by converting it there."""
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: True)
    monkeypatch.setattr(torch_linear, "chosen", lambda: kind)
    torch_linear._has_bf16_instructions.cache_clear()
    try:
        computed = torch_linear.activation_dtype(torch.device("cpu"), torch.bfloat16)
    finally:
        torch_linear._has_bf16_instructions.cache_clear()
    assert computed == (torch.bfloat16 if in_bf16 else torch.float32)


CAPPED = """
import torch
print("torch:", torch.backends.cpu.get_cpu_capability())
packed = torch.ops.mkldnn._reorder_linear_weight(torch.ones(32, 32), 8)
torch.ops.mkldnn._linear_pointwise(torch.ones(8, 32), packed, None, "none", [], "")
from lightllm.ops.linear import activation_dtype
print("bf16 in", activation_dtype(torch.device("cpu"), torch.bfloat16))
"""


@pytest.mark.skipif(detect() == CpuKind.OTHER, reason="needs AVX2")
def test_the_libraries_of_a_child_know_the_cap(tmp_path: Path) -> None:
    """The variables are those for a processor that has everything, so that they are set whatever this one has."""
    environ = {"LIGHTLLM_CPU_KIND": "avx2"}
    variables = environ | library_variables(environ, machine(tmp_path, SAPPHIRE_RAPIDS))
    output = subprocess.run(
        [sys.executable, "-c", CAPPED],
        env=os.environ | variables | {"ONEDNN_VERBOSE": "1"},
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    assert "torch: AVX2\n" in output and "bf16 in torch.float32\n" in output
    assert "isa:Intel AVX2\n" in output


def test_the_command_says_the_kind_or_what_is_wrong() -> None:
    command = [sys.executable, "-m", cpu_kind.__name__]
    right = subprocess.run(command, capture_output=True, text=True)
    assert (right.returncode, right.stdout) == (0, f"processor: {described()}\n")
    wrong = subprocess.run(
        command, capture_output=True, text=True, env=os.environ | {"LIGHTLLM_CPU_KIND": "vax"}
    )
    assert wrong.returncode == 2 and wrong.stderr.startswith("error: LIGHTLLM_CPU_KIND=vax is no kind")
