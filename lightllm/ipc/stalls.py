"""Which process keeps the server from making progress: one that does not run, or Model Backends that finish no round.

The Health Server judges by it, and the Supervisor ends what hangs too long.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

from lightllm.config import ServerConfig
from lightllm.ipc.beats import read_beats
from lightllm.ipc.runtime_dir import RuntimeDir
from lightllm.ipc.snapshot import Snapshot, SnapshotReader
from lightllm.protocol.health import OBSERVERS

SILENT_SECONDS = 7.0
"""A process that has not beaten for so long does not run: loops turn, and threads that beat wake, every second, also beside
an operation that takes long."""
_RANKS_SECONDS = 5.0
"""For the last words of ranks that have given up."""
_FROZEN_SECONDS = 5.0
"""A watch looks every second at least. Whatever keeps it for so long keeps the others too."""


@dataclasses.dataclass(frozen=True)
class Stall:
    process: str
    """As it reports itself: "backend-0", "router", "detokenizer"."""
    seconds: float
    """Since its last sign of progress."""

    @property
    def observer(self) -> bool:
        """Whether the server serves all the same."""
        return self.process in OBSERVERS

    def __str__(self) -> str:
        return f"{self.process} has made no progress for {self.seconds:.0f} s"


def round_seconds(config: ServerConfig) -> float:
    """How long a round may take. Ranks that wait for each other give up after --round_timeout and name the one that hangs, the
    last of them within twice that time: whatever takes clearly longer is not noticed by them."""
    return config.round_timeout if config.tp == 1 else 2 * config.round_timeout + _RANKS_SECONDS


def find_stalls(
    snapshot: Snapshot, beats: Mapping[str, float], now: float, round_seconds: float
) -> list[Stall]:
    """The processes that stand still, longest first. beats: as `read_beats` gives them; now: `time.monotonic()`; round_seconds:
    see there."""
    stalls = [Stall(process, now - beat) for process, beat in beats.items() if now - beat > SILENT_SECONDS]
    runs = all(stall.observer for stall in stalls)
    if runs and snapshot.round_due_since and now - snapshot.round_due_since > round_seconds:
        # A Router that has work, and hands out no round, is to blame itself.
        process = "backend-0" if snapshot.in_flight_rounds else "router"
        stalls.append(Stall(process, now - snapshot.round_due_since))
    return sorted(stalls, key=lambda stall: -stall.seconds)


class StallWatch:
    """Looks every second or more often, and so knows when the whole machine or container stood still: nothing that was due
    meanwhile counts as late."""

    def __init__(self, runtime: RuntimeDir, config: ServerConfig) -> None:
        self._reader = SnapshotReader(runtime.snapshot_file)
        self._folder = runtime.beats_dir
        self._round_seconds = round_seconds(config)
        self._checked = math.inf
        self.resumed = 0.0
        """When the machine went on last; `time.monotonic()`."""

    def check(self, now: float) -> list[Stall]:
        """As `find_stalls`. now: `time.monotonic()`."""
        if now - self._checked > _FROZEN_SECONDS:
            self.resumed = now
        self._checked = now
        beats = {process: max(beat, self.resumed) for process, beat in read_beats(self._folder).items()}
        snapshot = self._reader.read()
        if snapshot.round_due_since:
            snapshot.round_due_since = max(snapshot.round_due_since, self.resumed)
        return find_stalls(snapshot, beats, now, self._round_seconds)
