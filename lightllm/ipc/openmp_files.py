"""Files of shared memory that Intel's OpenMP runtime holds, and removes only where its process ends in order."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

_SHARED_MEMORY = Path("/dev/shm")


def remove_openmp_registration(pid: int) -> None:
    """Of a process of this user that has ended."""
    with contextlib.suppress(OSError):
        (_SHARED_MEMORY / f"__KMP_REGISTERED_LIB_{pid}_{os.getuid()}").unlink()


def remove_stale_openmp_registrations(folder: Path = _SHARED_MEMORY) -> None:
    """Removes those of this user's processes that are gone, and left something behind."""
    for path in folder.glob(f"__KMP_REGISTERED_LIB_*_{os.getuid()}"):
        pid = path.name.split("_")[-2]
        if pid.isdecimal() and not Path("/proc", pid).exists():
            path.unlink(missing_ok=True)
