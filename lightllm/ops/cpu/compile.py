"""Compiles the CPU kernels into a folder: `python -m lightllm.ops.cpu.compile FOLDER`, started by `library.py`.

Numba makes code for the processor it runs on, or for the one that NUMBA_CPU_NAME names. Several processes share the work.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import llvmlite.binding as llvm

from lightllm.ipc.child import die_with_parent
from lightllm.ops.cpu import SYMBOLS
from lightllm.ops.cpu.kernels import (
    block_attention,
    coded_attention,
    decode_attention,
    few_bits_linear,
    gated_activation,
    greedy_tokens,
    panel_linear,
    replay,
    rms_norm,
    rotary,
    widened_linear,
)

SOURCES = (
    block_attention,
    coded_attention,
    decode_attention,
    rotary,
    panel_linear,
    few_bits_linear,
    widened_linear,
    rms_norm,
    gated_activation,
    greedy_tokens,
    replay,
)
"""Those that take longest first."""
_MOST_PROCESSES = 4


def main(folder: Path) -> int:
    kernels = [kernel for source in SOURCES for kernel in source.kernels().items()]
    count = min(len(os.sched_getaffinity(0)), _MOST_PROCESSES)
    parts = [folder / f"part-{number}" for number in range(count)]
    processes = [
        multiprocessing.get_context("fork").Process(target=_compile, args=(kernels[number::count], part))
        for number, part in enumerate(parts)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    if any(process.exitcode for process in processes):
        return 1
    symbols: dict[str, str] = {}
    for part in parts:
        symbols |= json.loads(part.read_text())
        part.unlink()
    (folder / SYMBOLS).write_text(json.dumps(symbols))
    return 0


def _compile(kernels: list[tuple[str, Callable[[], Any]]], symbols: Path) -> None:
    die_with_parent()
    llvm.initialize_native_asmparser()
    names = {}
    for name, make in kernels:
        kernel = make()
        library = kernel._library
        # Numba itself keeps object code only if it was told to before it linked.
        (symbols.parent / f"{name}.o").write_bytes(library._codegen._tm.emit_object(library._final_module))
        names[name] = kernel.native_name
    symbols.write_text(json.dumps(names))


if __name__ == "__main__":
    die_with_parent()
    sys.exit(main(Path(sys.argv[1])))
