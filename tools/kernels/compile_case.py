"""What of a kernel is compiled ahead of time, without a GPU: the `COMPILE_CASES` of each file.

`tools/compile_kernels.py` compiles every case with every configuration that is shipped for it (`ops/triton/configs/`)
and checks registers, spills and shared memory.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

ARCHITECTURES = (80, 89, 90, 100)
"""Compute capabilities that kernels are built for: A100, L40S and RTX 40, H100 and H200, B200."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompileCase:
    """One specialisation of a kernel."""

    kernel: Any
    """The `@triton.jit` function."""
    label: str
    """What it is for, in a few words: "bf16, 8192 wide"."""
    arguments: Mapping[str, Any]
    """Every argument of the kernel but those of the configuration and `PDL`. Text is a type in the notation of Triton's
    ahead-of-time compiler: "*bf16:16" a pointer whose address is a multiple of 16, "i32:16" an integer that is one,
    "i64", "fp32"; anything else, None too, is the value of a constexpr."""
    config: str = ""
    """Name of the kernel in the configuration files; empty: `launch` is all there is."""
    sizes: Mapping[str, int] = dataclasses.field(default_factory=dict)
    """What the launching function asks `launch_config` with."""
    before_wait: str = ""
    """Which arguments a kernel with dependent launch reads before it waits for the kernel before it: what that one does not
    write. Empty: none."""
    launch: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Constexprs and options (num_warps, num_stages) beside those of the configuration."""
    architectures: tuple[int, ...] = ARCHITECTURES
    short: bool = True
    """Compiled in `make test`, not only in `make test-kernels`."""
