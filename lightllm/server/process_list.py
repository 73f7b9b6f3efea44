"""What the Supervisor says of its processes to those that judge over the server, and to clients of /health."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence

from lightllm.ipc.beats import Beat
from lightllm.ipc.health import ProcessListWriter
from lightllm.ipc.runtime_dir import RuntimeDir
from lightllm.protocol.health import ProcessState
from lightllm.server.child_process import ChildProcess
from lightllm.server.plan import ChildSpec
from lightllm.server.process_group import ProcessGroup

_SUPERVISOR = ProcessState("supervisor", "ready")


class ProcessList:
    """Made before the first process starts, so that each of them finds the whole list. Raises `StartupError`."""

    def __init__(self, runtime: RuntimeDir, specs: Sequence[ChildSpec]) -> None:
        self._away_since = dict.fromkeys((spec.name for spec in specs), time.monotonic())
        self._writer = ProcessListWriter(runtime.processes_file, len(specs) + 1)
        self._writer.write([_SUPERVISOR, *(ProcessState(spec.name, "starting") for spec in specs)])
        self._beat = Beat(runtime.beats_dir / _SUPERVISOR.name)

    def update(self, groups: Iterable[ProcessGroup]) -> None:
        """To be called every second or more often: it also says that the Supervisor runs. Cheap where nothing has changed."""
        self._beat.beat()
        states = [self._state(child, group.restarts) for group in groups for child in group.children]
        self._writer.write([_SUPERVISOR, *states])

    def _state(self, child: ChildProcess, restarts: int) -> ProcessState:
        if child.ready and child.failure is None:
            self._away_since.pop(child.name, None)
            return ProcessState(child.name, "ready", restarts=restarts)
        since = self._away_since.setdefault(child.name, time.monotonic())
        if not child.running or child.failure is not None:
            return ProcessState(child.name, "ended", "", restarts, since)
        if child.status.state == "loading":
            return ProcessState(child.name, "loading", child.status.detail, restarts, since)
        return ProcessState(child.name, "starting", "", restarts, since)
