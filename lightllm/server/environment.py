"""The environment of child processes: thread pools and memory allocation are fixed before an interpreter starts."""

from __future__ import annotations

import os
from collections.abc import Mapping

from lightllm.backend.machine import compute_threads
from lightllm.config import ServerConfig


def backend_environment(config: ServerConfig, environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Variables for a Model Backend; what the user has set himself wins.

    OpenMP reads them once, when torch is imported. Its threads must not spin while they wait for the next round:
    they would take the cores from the Router and the Http Server.
    """
    threads = 1 if config.mock_backend is not None else config.cpu_threads or compute_threads()
    wanted = {
        "OMP_NUM_THREADS": str(threads),
        "OMP_WAIT_POLICY": "passive",
        "KMP_BLOCKTIME": "0",
        "TOKENIZERS_PARALLELISM": "false",
    }
    return {
        name: value
        for name, value in wanted.items()
        if name not in environ or (name == "OMP_NUM_THREADS" and config.cpu_threads)
    }


def helper_environment(environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Variables for the processes that do no linear algebra: no idle thread pools, few malloc arenas."""
    wanted = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2"}
    return {name: value for name, value in wanted.items() if name not in environ}
