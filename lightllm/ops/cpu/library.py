"""The compiled CPU kernels: kept on disk for each processor and version, loaded without Numba, run by all of torch's threads.

<cache>/lightllm/cpu-kernels/<key>/     an object file a kernel, and `symbols.json`

The key is made of the kernels' source, the compiler's version, and the processor with what `LIGHTLLM_CPU_KIND` leaves of it.
Who needs them first compiles them, which takes some ten seconds; others wait for it. Only folders that nobody else can write
to are read: what lies in them is run.
"""

from __future__ import annotations

import ctypes
import fcntl
import functools
import hashlib
import importlib.metadata
import importlib.util
import json
import logging
import os
import platform
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from lightllm.ops.cpu import SYMBOLS
from lightllm.ops.cpu.recording import OfRound, current
from lightllm.ops.cpu_kind import CpuKind, chosen, detect

logger = logging.getLogger(__name__)

VARIABLE = "LIGHTLLM_KERNEL_CACHE"
"""A folder for compiled kernels, instead of the user's cache."""
_COMPILE_SECONDS = 600
_LLVM_NAMES = {
    CpuKind.AVX2: "haswell", CpuKind.AVX512: "skylake-avx512", CpuKind.AVX512_BF16: "cooperlake",
    CpuKind.AMX: "sapphirerapids",
}  # fmt: skip
"""A processor of each kind, where the environment allows less than there is."""
_NEVER_CALLED = (
    "numba_gil_ensure", "numba_gil_release", "numba_do_raise", "numba_unpickle", "numba_runtime_build_excinfo_struct", "NRT_Free",
)  # fmt: skip
"""What Numba's frame around a kernel would call for an exception; the kernels raise none."""
_TILED = ("block_attention_bfloat16",)
"""Kernels that use the matrix unit (AMX), for which a process must ask."""
_ARCH_PRCTL, _ARCH_REQ_XCOMP_PERM, _XFEATURE_XTILEDATA = 158, 0x1023, 18
"""Of Linux on x86-64 (asm/prctl.h)."""
_engines: list[object] = []
"""They own the code's memory."""


class Kernel:
    """A compiled function of one argument, the address of int64 numbers, which each of torch's threads runs at the same time."""

    def __init__(self, address: int) -> None:
        self._address = address
        self._alone = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(address)
        self._together = _parallel_region()
        self._at_once = ctypes.PYFUNCTYPE(None, ctypes.c_void_p)(address)

    def at_once(self, call: Any) -> None:
        """Runs it in this thread alone, for what takes some microseconds: no other thread of Python's runs meanwhile."""
        recording = current()
        if recording is not None:
            recording.note(self._address, call, alone=True)
        self._at_once(call)

    def __call__(self, call: Any, of_round: OfRound | None = None) -> None:
        """call: the address of what the kernel is told, or an array of `ctypes`, with addresses in tensors alone; of_round: how it is
        told the same of another round."""
        recording = current()
        if recording is not None:
            recording.note(self._address, call, False, of_round)
        threads = torch.get_num_threads()
        if threads == 1 or self._together is None:
            self._alone(call)
        else:
            self._together(self._address, call, threads, 0)


def _parallel_region() -> Callable[..., object] | None:
    """GNU's entry of the OpenMP runtime in this process, which Intel's has too: torch and the kernels share one pool."""
    start = getattr(ctypes.CDLL(None), "GOMP_parallel", None)
    if start is not None:
        start.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
        start.restype = None
    return start


def barrier_address() -> int:
    """Of the function at which the threads of a parallel region wait for each other; 0: there is none."""
    found = getattr(ctypes.CDLL(None), "GOMP_barrier", None)
    return 0 if found is None else ctypes.cast(found, ctypes.c_void_p).value or 0


@functools.cache
def load_kernels() -> dict[str, Kernel]:
    """By name; compiled if that was not done yet. Empty where there are none, and torch computes: without Numba, on a processor
    of no known kind, or where no folder can be written to or the compiler fails, which is logged."""
    if importlib.util.find_spec("numba") is None or chosen() == CpuKind.OTHER:
        return {}
    base = _cache_folder()
    if base is None:
        logger.warning(
            "no folder for compiled CPU kernels can be written to; torch computes in their place, slower. Name one: %s",
            VARIABLE,
        )
        return {}
    try:
        return _linked(_compiled(base))
    except (OSError, subprocess.SubprocessError, RuntimeError) as error:
        logger.warning("the CPU kernels cannot be compiled; torch computes in their place, slower: %s", error)
        return {}


def _cache_folder() -> Path | None:
    places = [Path(os.environ[VARIABLE])] if os.environ.get(VARIABLE) else []
    if not places:
        if os.environ.get("XDG_CACHE_HOME"):
            places.append(Path(os.environ["XDG_CACHE_HOME"], "lightllm", "cpu-kernels"))
        elif os.environ.get("HOME"):
            places.append(Path(os.environ["HOME"], ".cache", "lightllm", "cpu-kernels"))
        places.append(Path(tempfile.gettempdir(), f"lightllm-{os.getuid()}-kernels"))
    return next(filter(_usable, places), None)


def _usable(folder: Path) -> bool:
    """Makes the folder if it is not there. Whether nobody else can write to it, and it has the kernels or can take them."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.lstat()
        private = found.st_uid in (0, os.getuid()) and not found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
        if not stat.S_ISDIR(found.st_mode) or not private:
            return False
        if (folder / _key() / SYMBOLS).exists():
            return True
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


def _compiled(base: Path) -> Path:
    """The folder with the kernels of this processor."""
    folder = base / _key()
    if (folder / SYMBOLS).exists():
        return folder
    lock = os.open(base / "lock", os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / SYMBOLS).exists():
            logger.info("compiling the CPU kernels for this processor, once")
            new = Path(tempfile.mkdtemp(dir=base))
            try:
                _compile_into(new)
                shutil.rmtree(folder, ignore_errors=True)
                new.rename(folder)
            finally:
                shutil.rmtree(new, ignore_errors=True)
        return folder
    finally:
        os.close(lock)


def _compile_into(folder: Path) -> None:
    capped = (
        {} if chosen() == detect() else {"NUMBA_CPU_NAME": _LLVM_NAMES[chosen()], "NUMBA_CPU_FEATURES": ""}
    )
    environ = {name: value for name, value in os.environ.items() if not name.startswith("NUMBA_")}
    command = [sys.executable, "-m", "lightllm.ops.cpu.compile", str(folder)]
    run = subprocess.run(
        command,
        env=environ | capped,
        timeout=_COMPILE_SECONDS,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    if run.returncode:
        raise RuntimeError((run.stderr.strip().splitlines() or [f"status {run.returncode}"])[-1])


@functools.cache
def _key() -> str:
    import llvmlite.binding as llvm

    digest = hashlib.sha256()
    sources = Path(__file__).parent
    for file in sorted([*sources.glob("kernels/*.py"), *sources.glob("calls/*.py"), sources / "compile.py"]):
        digest.update(file.read_bytes())
    versions = [importlib.metadata.version(name) for name in ("numba", "llvmlite")]
    machine = (llvm.get_host_cpu_name(), llvm.get_host_cpu_features().flatten(), chosen().name)
    digest.update(repr((versions, machine, platform.python_version())).encode())
    return digest.hexdigest()[:24]


def _linked(folder: Path) -> dict[str, Kernel]:
    import llvmlite.binding as llvm

    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    never = ctypes.cast(ctypes.CDLL(None).abort, ctypes.c_void_p).value
    for name in _NEVER_CALLED:
        if llvm.address_of_symbol(name) is None:
            llvm.add_symbol(name, never)
    machine = llvm.Target.from_default_triple().create_target_machine()
    kernels = {}
    for name, symbol in json.loads((folder / SYMBOLS).read_text()).items():
        if name in _TILED and chosen() == CpuKind.AMX and not _tiles_are_allowed():
            continue
        engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), machine)
        engine.add_object_file(llvm.ObjectFileRef.from_data((folder / f"{name}.o").read_bytes()))
        engine.finalize_object()
        _engines.append(engine)
        kernels[name] = Kernel(engine.get_function_address(symbol))
    return kernels


@functools.cache
def _tiles_are_allowed() -> bool:
    """Whether this process may use the matrix unit's registers; oneDNN asks likewise."""
    return ctypes.CDLL(None).syscall(_ARCH_PRCTL, _ARCH_REQ_XCOMP_PERM, _XFEATURE_XTILEDATA) == 0
