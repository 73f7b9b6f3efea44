"""What of this machine's processors and memory a process may use: affinity, control groups, physical cores."""

from __future__ import annotations

import math
import os
from pathlib import Path

_UNLIMITED = 1 << 60
"""Control groups without a limit report a huge number, not always the same."""


def available_memory(root: Path = Path("/")) -> int:
    """Bytes that this process may still allocate: MemAvailable, within every control group above it (v1 and v2).

    `root`: where `proc` and `sys` are found; tests bring their own.
    """
    limits = [_meminfo(root)]
    for directory, current, maximum in _memory_groups(root):
        limit = _read_number(directory / maximum)
        if limit is not None and limit < _UNLIMITED:
            used = _read_number(directory / current) or 0
            limits.append(max(limit - used + _reclaimable(directory), 0))
    return min(limits)


def compute_threads(root: Path = Path("/")) -> int:
    """Physical cores among the processors this process may run on, within the control group's quota; at least 1."""
    processors = os.sched_getaffinity(0)
    cores = set()
    for processor in processors:
        siblings = root / f"sys/devices/system/cpu/cpu{processor}/topology/thread_siblings_list"
        cores.add(siblings.read_text().strip() if siblings.exists() else str(processor))
    count = len(cores)
    for directory, name in _groups(root):
        if name == "":
            quota = directory / "cpu.max"
            values = quota.read_text().split() if quota.exists() else []
            if len(values) == 2 and values[0] != "max":
                count = min(count, math.ceil(int(values[0]) / int(values[1])))
    return max(count, 1)


def rank_threads(ranks: int) -> int:
    """Compute threads of each of `ranks` Model Backends on this machine."""
    return max(compute_threads() // ranks, 1)


def _meminfo(root: Path) -> int:
    for line in (root / "proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    raise OSError("/proc/meminfo has no MemAvailable")


def _memory_groups(root: Path) -> list[tuple[Path, str, str]]:
    """(folder, file of current use, file of the limit) of every memory control group this process is in."""
    found = []
    for directory, name in _groups(root):
        if name == "":
            found.append((directory, "memory.current", "memory.max"))
        elif "memory" in name.split(","):
            found.append((directory, "memory.usage_in_bytes", "memory.limit_in_bytes"))
    return found


def _groups(root: Path) -> list[tuple[Path, str]]:
    """(folder, controllers) of this process's control groups and all above them; v2 has no controller names.

    Inside a container the path that the kernel tells may lie outside of what is mounted: what exists is looked at.
    """
    table = root / "proc/self/cgroup"
    found = []
    for line in table.read_text().splitlines() if table.exists() else []:
        _, name, path = line.split(":", 2)
        top = root / "sys/fs/cgroup"
        if name and (top / name).is_dir():
            top = top / name
        directory = top / path.lstrip("/")
        while directory.is_relative_to(top):
            if directory.is_dir():
                found.append((directory, name))
            directory = directory.parent
    return found


def _reclaimable(directory: Path) -> int:
    """File pages that the kernel gives back before it runs out: the inactive ones count as use, but are free."""
    statistics = directory / "memory.stat"
    for line in statistics.read_text().splitlines() if statistics.exists() else []:
        if line.startswith(("inactive_file ", "total_inactive_file ")):
            return int(line.split()[1])
    return 0


def _read_number(path: Path) -> int | None:
    text = path.read_text().strip() if path.exists() else ""
    return int(text) if text.isdigit() else None
