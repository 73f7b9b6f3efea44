"""How a judgement over the server is made and handed on, in two records of shared memory:

    Supervisor --processes: what each child is doing--> Health Server, Http Servers
    Health Server --health: the judgement--> Http Servers

Where the Health Server does not run, an Http Server judges by itself, by the same rule.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec

from lightllm.ipc.latest_record import RecordReader, RecordWriter
from lightllm.ipc.snapshot import Snapshot
from lightllm.ipc.stalls import SILENT_SECONDS, Stall
from lightllm.protocol.health import Health, ProcessState, Status

OLD_SECONDS = 3.0
"""The Health Server judges twice a second. A judgement as old as this is not relied on."""
_LONGEST_DETAIL = 120
"""Characters of it that are kept: 6 bytes each at most in JSON, and a judgement has it twice."""
_PROCESS_BYTES = 1760
"""Room for one process in a record."""
_BYTES = 2048
"""Room for all else."""

_ALL_PASS = frozenset({"router", "detokenizer"})
"""Processes without which nobody is served: they are to be back as soon as a silent one is to show itself. (Without Model
Backends the Router is not ready.)"""

_encoder = msgspec.json.Encoder()
_health = msgspec.json.Decoder(Health)
_processes = msgspec.json.Decoder(list[ProcessState])


class ProcessListWriter:
    """The Supervisor's. Raises `StartupError` where there is no room."""

    def __init__(self, path: Path, count: int) -> None:
        """count: processes, at most."""
        self._records = RecordWriter(path, _capacity(count))
        self._written: Sequence[ProcessState] | None = None

    def write(self, processes: Sequence[ProcessState]) -> None:
        """Does nothing where nothing has changed."""
        if processes != self._written:
            self._written = processes
            self._records.write(_encoder.encode([_shortened(process) for process in processes]))


class ProcessListReader:
    def __init__(self, path: Path) -> None:
        self._records = RecordReader(path)

    def read(self) -> list[ProcessState]:
        """Empty before there is one."""
        data = self._records.read()
        return _processes.decode(data) if data else []


class HealthWriter:
    """The Health Server's. Raises `StartupError` where there is no room."""

    def __init__(self, path: Path, count: int) -> None:
        """count: processes, at most."""
        self._records = RecordWriter(path, _capacity(count))

    def write(self, health: Health) -> None:
        self._records.write(_encoder.encode(health))


class HealthReader:
    def __init__(self, path: Path) -> None:
        self._records = RecordReader(path)

    def read(self) -> Health | None:
        """None before there is one."""
        data = self._records.read()
        return _health.decode(data) if data else None


def judge(
    processes: Sequence[ProcessState],
    snapshot: Snapshot,
    stalls: Sequence[Stall],
    now: float,
    no_token_seconds: float = 0.0,
) -> Health:
    """Whether the server serves, and if not, why. stalls: as `find_stalls` gives them; now: `time.monotonic()`;
    no_token_seconds: since when no token has come although requests run, if that is too long, else 0."""
    ended = {process.name for process in processes if process.state == "ended"}
    stalls = [stall for stall in stalls if stall.process not in ended]  # nobody expects these to beat
    hanging = {stall.process: stall for stall in stalls}
    reasons = [str(stall) for stall in stalls if not stall.observer]
    reasons += [
        f"{process.name} has not been ready for {now - process.away_since:.0f} s"
        for process in processes
        if process.name in _ALL_PASS and process.away_since and now - process.away_since > SILENT_SECONDS
    ]
    if not reasons and no_token_seconds:
        reasons = [f"requests run, and no token has come for {no_token_seconds:.0f} s (--health_timeout)"]
    notes = [str(stall) for stall in stalls if stall.observer]
    notes += [f"{process.name} is {_doing(process)}" for process in processes if process.state != "ready"]
    status: Status = "starting" if not snapshot.ready else "unhealthy" if reasons else "ok"
    listed = [_for_clients(process, hanging.get(process.name)) for process in processes]
    return Health(status, "; ".join(reasons + notes), listed, now)


def _doing(process: ProcessState) -> str:
    return f"{process.state}: {process.detail}" if process.detail else process.state


def _for_clients(process: ProcessState, stall: Stall | None) -> ProcessState:
    if stall is None:
        return msgspec.structs.replace(process, away_since=0.0)
    detail = f"no sign of life for {stall.seconds:.0f} s"
    return msgspec.structs.replace(process, state="hanging", detail=detail, away_since=0.0)


def _shortened(process: ProcessState) -> ProcessState:
    return msgspec.structs.replace(process, detail=process.detail[:_LONGEST_DETAIL])


def _capacity(count: int) -> int:
    return _BYTES + count * _PROCESS_BYTES
