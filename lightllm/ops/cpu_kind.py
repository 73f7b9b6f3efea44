"""Which instructions of the processor are used: what it has, or less if `LIGHTLLM_CPU_KIND` says so.

| kind          | instructions (beyond the kind before)        | bf16 weights are computed in |
|---------------|----------------------------------------------|------------------------------|
| `avx2`        | AVX2, FMA, F16C                              | fp32                         |
| `avx512`      | AVX512 F, BW, DQ, VL                         | fp32                         |
| `avx512_bf16` | AVX512-BF16 (Zen 4, Cooper Lake and newer)   | bf16                         |
| `amx`         | AMX tiles of bf16 (Sapphire Rapids and newer) | bf16                        |

The libraries below read variables of their own when they are first used, so those of a Model Backend are set before it
starts (`library_variables`). Nothing here loads torch.
"""

from __future__ import annotations

import enum
import os
import sys
from collections.abc import Mapping
from pathlib import Path

from lightllm.errors import InvalidOption, StartupError

VARIABLE = "LIGHTLLM_CPU_KIND"


class CpuKind(enum.IntEnum):
    """In ascending order: each has the instructions of those before it."""

    OTHER = 0
    """Another architecture, or too old for AVX2: what the libraries find out themselves counts."""
    AVX2 = 1
    AVX512 = 2
    AVX512_BF16 = 3
    AMX = 4


_FLAGS = {
    CpuKind.AVX2: {"avx2", "fma", "f16c"},
    CpuKind.AVX512: {"avx512f", "avx512bw", "avx512dq", "avx512vl"},
    CpuKind.AVX512_BF16: {"avx512_bf16"},
    CpuKind.AMX: {"amx_tile", "amx_bf16"},
}
"""What /proc/cpuinfo must list for a kind, beside what the kinds before it need."""

_LIBRARY_VARIABLES = {
    CpuKind.AVX2: ("AVX2", "avx2", "AVX2", "AVX2"),
    CpuKind.AVX512: ("AVX512_CORE", "avx512", "AVX512", "AVX512"),
    CpuKind.AVX512_BF16: ("AVX512_CORE_BF16", "avx512", "AVX512_E1", "AVX512_E3"),
}
"""For oneDNN, torch's own kernels, FBGEMM (E1: with VNNI) and MKL (E3: with VNNI and bf16; on Intel's processors only)."""


def detect(root: Path = Path("/")) -> CpuKind:
    """The kind of this machine's processor. `root`: where `proc` is found; tests bring their own."""
    file, kind = root / "proc/cpuinfo", CpuKind.OTHER
    for line in file.read_text().splitlines() if file.exists() else []:
        name, _, value = line.partition(":")
        if name.strip() == "flags":
            flags = set(value.split())
            for following, needed in _FLAGS.items():
                if not needed <= flags:
                    break
                kind = following
            break
    return kind


def chosen(environ: Mapping[str, str] = os.environ, root: Path = Path("/")) -> CpuKind:
    """The kind whose instructions are used. Raises `InvalidOption` for a value of the variable that names none."""
    found, text = detect(root), environ.get(VARIABLE, "").strip()
    return min(found, _named(text)) if text else found


def described(environ: Mapping[str, str] = os.environ, root: Path = Path("/")) -> str:
    """Of `chosen`, for people: "avx2", or "avx2 (LIGHTLLM_CPU_KIND; the processor is avx512_bf16)"."""
    found, used = detect(root), chosen(environ, root)
    name = used.name.lower()
    return name if used == found else f"{name} ({VARIABLE}; the processor is {found.name.lower()})"


def library_variables(environ: Mapping[str, str] = os.environ, root: Path = Path("/")) -> dict[str, str]:
    """What caps the libraries at `chosen`; empty where nothing is capped: they are never told to use more."""
    found, used = detect(root), chosen(environ, root)
    if used == found:
        return {}
    names = (
        "ONEDNN_MAX_CPU_ISA",
        "ATEN_CPU_CAPABILITY",
        "FBGEMM_ENABLE_INSTRUCTIONS",
        "MKL_ENABLE_INSTRUCTIONS",
    )
    return dict(zip(names, _LIBRARY_VARIABLES[used], strict=True))


def _named(text: str) -> CpuKind:
    names = {kind.name.lower(): kind for kind in CpuKind if kind != CpuKind.OTHER}
    if text.lower() not in names:
        raise InvalidOption(
            f"{VARIABLE}={text} is no kind of processor.",
            f"Set it to one of {', '.join(names)}, or leave it out.",
        )
    return names[text.lower()]


def main() -> int:
    """`python -m lightllm.ops.cpu_kind`: one line for people."""
    try:
        print(f"processor: {described()}")
    except StartupError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
