"""Which process keeps the server from making progress, judged by the Router's snapshot.

The Http Servers answer /health by it, and the Supervisor writes it into the log.
"""

from __future__ import annotations

import dataclasses

from lightllm.config import ServerConfig
from lightllm.ipc.snapshot import Snapshot


@dataclasses.dataclass(frozen=True)
class Stall:
    process: str
    """As it reports itself: "backend-0", "router", "detokenizer"."""
    seconds: float


def stall_seconds(config: ServerConfig) -> float:
    """How long a process may take. Ranks that wait for each other give up after --round_timeout, the last of them
    within twice that time: whatever takes longer is not noticed by them."""
    return 2 * config.round_timeout


def find_stall(snapshot: Snapshot, now: float, limit: float) -> Stall | None:
    """The process that has been waited for longer than `limit` seconds. `now`: `time.monotonic()`."""
    if not snapshot.heartbeat:
        return None
    model = "backend-0" if snapshot.in_flight_rounds else "router"
    waited_for = (
        ("router", snapshot.heartbeat),
        (model, snapshot.round_due_since),
        ("detokenizer", snapshot.text_due_since),
    )
    for process, since in waited_for:
        if since and now - since > limit:
            return Stall(process, now - since)
    return None
