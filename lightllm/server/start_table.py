"""The start-up table: where the wall time of a launch went, process by process."""

from __future__ import annotations

import os
import time
from pathlib import Path

Phases = dict[str, float]
"""Name -> seconds, in order."""


def seconds_since_process_start() -> float:
    """Age of this process (resolution 10 ms): the interpreter's own start and all imports are in it."""
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    started = int(fields[19]) / os.sysconf("SC_CLK_TCK")
    return max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - started)


class PhaseClock:
    """Splits the time since the process began into named phases without a gap."""

    def __init__(self) -> None:
        self._last = time.monotonic() - seconds_since_process_start()
        self.phases: Phases = {}

    def end(self, phase: str) -> None:
        """Everything since the last `end` belongs to `phase`."""
        now = time.monotonic()
        self.phases[phase] = self.phases.get(phase, 0.0) + now - self._last
        self._last = now

    @property
    def total(self) -> float:
        return sum(self.phases.values())


def child_phases(seconds_until: Phases, reported: Phases) -> Phases:
    """Phases of a child that add up to its time until "ready": Python's start, what it reported, the rest."""
    total = seconds_until.get("ready", 0.0)
    first = min(seconds_until.get("first report", 0.0), total)
    phases = {"python": first, **reported}
    phases["other"] = max(0.0, total - first - sum(reported.values()))
    return phases


def format_table(total: float, rows: dict[str, Phases]) -> str:
    """One line a process: its name, the sum of its phases, the phases."""
    lines = [f"started in {total:.2f} s"]
    width = max(len(name) for name in rows)
    for name, phases in rows.items():
        shown = [f"{phase} {seconds:.2f}" for phase, seconds in phases.items() if seconds >= 0.005]
        lines.append(f"  {name:<{width}} {sum(phases.values()):7.2f} s   {' · '.join(shown)}")
    return "\n".join(lines)
