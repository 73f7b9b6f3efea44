"""Which process keeps the server from making progress: one that does not run, or Model Backends that finish no round.

The Http Servers answer /health by it, and the Supervisor ends what hangs too long.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from lightllm.config import ServerConfig
from lightllm.ipc.snapshot import Snapshot

SILENT_SECONDS = 7.0
"""A process that has not beaten for so long does not run: loops turn, and threads that beat wake, every second, also beside
an operation that takes long."""
_RANKS_SECONDS = 5.0
"""For the last words of ranks that have given up."""


@dataclasses.dataclass(frozen=True)
class Stall:
    process: str
    """As it reports itself: "backend-0", "router", "detokenizer"."""
    seconds: float
    """Since its last sign of progress."""


def round_seconds(config: ServerConfig) -> float:
    """How long a round may take. Ranks that wait for each other give up after --round_timeout and name the one that hangs, the
    last of them within twice that time: whatever takes clearly longer is not noticed by them."""
    return config.round_timeout if config.tp == 1 else 2 * config.round_timeout + _RANKS_SECONDS


def find_stall(
    snapshot: Snapshot, beats: Mapping[str, float], now: float, round_seconds: float
) -> Stall | None:
    """The process that has stood still longest, among those that do too long. beats: as `read_beats` gives them; now:
    `time.monotonic()`; round_seconds: see there."""
    stalls = [Stall(process, now - beat) for process, beat in beats.items() if now - beat > SILENT_SECONDS]
    if not stalls and snapshot.round_due_since and now - snapshot.round_due_since > round_seconds:
        # A Router that has work, and hands out no round, is to blame itself.
        process = "backend-0" if snapshot.in_flight_rounds else "router"
        stalls.append(Stall(process, now - snapshot.round_due_since))
    return max(stalls, key=lambda stall: stall.seconds, default=None)
