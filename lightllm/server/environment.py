"""The environment of child processes: thread pools and memory allocation are fixed before an interpreter starts."""

from __future__ import annotations

import importlib.metadata
import os
import re
from collections.abc import Mapping
from pathlib import Path

from lightllm.config import ServerConfig
from lightllm.machine import rank_threads
from lightllm.ops.cpu_kind import library_variables

_TOKENIZING_THREADS = 4
"""Of each Http Server."""
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")
_LIBRARIES = ("GOMP_", "KMP_", "MKL_", "OMP_", "OPENBLAS_", "PYTORCH_", "TORCH_", "TORCHINDUCTOR_", "TRITON_")
_COUNTS = re.compile(r"\s*[1-9][0-9]{0,5}\s*(,\s*[1-9][0-9]{0,5}\s*)*")


def backend_environment(config: ServerConfig, environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Variables for a Model Backend; what the user has set himself wins.

    OpenMP reads them once, when torch is imported. A layer is a dozen parallel regions: threads that sleep between them
    cost about 0.1 ms a region to wake, threads that spin take the cores from the Router and the Http Server. Intel's
    runtime spins for a millisecond and yields to any thread that wants the core; GNU's, which torch brings, does not yield.
    """
    if config.mock_backend is not None:
        return _unless_set({"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}, environ)
    variables = _torch_environment(
        config, config.cpu_threads or rank_threads(len(config.node_ranks)), environ
    )
    if config.cpu_threads:
        variables["OMP_NUM_THREADS"] = str(config.cpu_threads)
    return variables


def visual_environment(config: ServerConfig, environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Variables for a Visual Server, and for the ranks that it starts: all encoders together have a thread a core."""
    return _torch_environment(config, rank_threads(config.visual_dp * config.visual_tp), environ)


def _torch_environment(config: ServerConfig, threads: int, environ: Mapping[str, str]) -> dict[str, str]:
    wanted = library_variables(environ) | {"OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"}
    runtime = None if config.device == "cuda" else intel_openmp()
    if runtime is None:
        wanted["OMP_WAIT_POLICY"] = "passive"
    else:
        wanted["KMP_BLOCKTIME"] = "1"
    variables = _unless_set(wanted, environ)
    if runtime is not None and "iomp" not in environ.get("LD_PRELOAD", ""):
        variables["LD_PRELOAD"] = ":".join(filter(None, [environ.get("LD_PRELOAD"), str(runtime)]))
    return variables


def helper_environment(environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Variables for the processes that do no linear algebra: no idle thread pools, few malloc arenas. A long text is tokenized by so
    many threads."""
    tokenizing = min(_TOKENIZING_THREADS, os.cpu_count() or 1)
    return _unless_set(
        {
            "OMP_NUM_THREADS": "1",
            "OPENBLAS_NUM_THREADS": "1",
            "MALLOC_ARENA_MAX": "2",
            "RAYON_NUM_THREADS": str(tokenizing),
        },
        environ,
    )


def without_empty_values(environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The environment without variables of libraries that an orchestrator has set to nothing: it means that they are not
    set, but some readers stumble over it (torch over TORCH_LOGS)."""
    return {
        name: value for name, value in environ.items() if value.strip() or not name.startswith(_LIBRARIES)
    }


def intel_openmp() -> Path | None:
    """Intel's OpenMP runtime, if the package `intel-openmp` (extra "cpu") is installed."""
    try:
        files = importlib.metadata.files("intel-openmp") or []
    except importlib.metadata.PackageNotFoundError:
        return None
    for file in files:
        if file.name == "libiomp5.so":
            path = Path(str(file.locate())).resolve()
            return path if path.exists() else None
    return None


def _unless_set(wanted: dict[str, str], environ: Mapping[str, str]) -> dict[str, str]:
    return {
        name: value for name, value in wanted.items() if not environ.get(name) or name in _unusable(environ)
    }


def _unusable(environ: Mapping[str, str]) -> list[str]:
    """Variables with numbers of threads that are no numbers from 1 on; OpenMP would guess, or use every processor."""
    return [name for name in _THREADS if environ.get(name) and not _COUNTS.fullmatch(environ[name])]


def environment_warnings(environ: Mapping[str, str] = os.environ) -> list[str]:
    """What is ignored of the environment, for the log."""
    return [f"{name}={environ[name]!r} is no number of threads: ignored" for name in _unusable(environ)]
