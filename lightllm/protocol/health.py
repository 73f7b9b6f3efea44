"""How the server is, as its processes tell each other in shared memory, and as /health tells a client."""

from __future__ import annotations

from typing import Literal

import msgspec

OBSERVERS = frozenset({"supervisor", "metrics", "health"})
"""Processes that no request passes: while one of them hangs or is started again, the server serves."""


class ProcessState(msgspec.Struct, frozen=True, omit_defaults=True):
    """One child process. The Supervisor knows all states but "hanging"."""

    name: str
    """e.g. "router", "backend-0", "http-0"."""
    state: Literal["starting", "loading", "ready", "ended", "hanging"]
    """ended: it is about to be started again."""
    detail: str = ""
    """What it does now, while it is being started; since when it does nothing, while it hangs."""
    restarts: int = 0
    """Lately: within the window in which --max_restarts counts."""
    away_since: float = 0.0
    """`time.monotonic()` when it began to be no longer ready; 0: it is, or clients are told."""


Status = Literal["ok", "starting", "unhealthy", "stopping"]


class Health(msgspec.Struct, frozen=True):
    """A judgement over the whole server."""

    status: Status
    """starting: the model does not serve yet, or does not serve again yet. unhealthy: it should, and something hangs.
    stopping: an Http Server says so of itself."""
    reason: str
    """Why it is not "ok", or what else is worth knowing; may be empty."""
    processes: list[ProcessState]
    judged: float = 0.0
    """`time.monotonic()`."""
