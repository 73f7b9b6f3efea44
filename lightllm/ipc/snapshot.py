"""The global state of the server in shared memory: written by the Router alone, read by every other process that asks."""

from __future__ import annotations

import struct
from pathlib import Path

import msgspec

from lightllm.ipc.latest_record import RecordReader, RecordWriter
from lightllm.protocol.metrics import SNAPSHOT_METRICS


class Snapshot(msgspec.Struct, kw_only=True):
    """All fields are numbers, so that the record has a fixed size."""

    ready: int = 0
    running: int = 0
    waiting: int = 0
    paused: int = 0
    slots_total: int = 0
    slots_used: int = 0
    """Slots owned by requests."""
    slots_cached: int = 0
    """Slots that only the prefix cache holds."""
    max_req_total_len: int = 0
    vocab_size: int = 0
    estimated_peak: int = 0
    """Predicted peak of slots for what runs now."""
    rounds: int = 0
    prompt_tokens: int = 0
    output_tokens: int = 0
    finished: int = 0
    refused: int = 0
    restored: int = 0
    """Requests that an earlier Router had accepted."""
    aborted: int = 0
    not_finite: int = 0
    """Requests that ended because their logits were no numbers."""
    pauses: int = 0
    """How often requests had to pause."""
    row_failures: int = 0
    """Requests that ended because their row could not be prepared."""
    unheard: int = 0
    """Http Servers that may not have told this Router yet what has to go on."""
    in_flight_rounds: int = 0
    round_due_since: float = 0.0
    """time.monotonic(): there is work since then, and no result of a round has come; 0: there is no work."""


_COUNTERS = [field for metric, field in SNAPSHOT_METRICS if metric.kind == "counter"]
_FIELDS = msgspec.structs.fields(Snapshot)
_RECORD = struct.Struct("<" + "".join("d" if field.type is float else "q" for field in _FIELDS))


class SnapshotWriter:
    """Creates the file, or takes over that of a Router that died; one writer at a time. Raises `StartupError`."""

    def __init__(self, path: Path) -> None:
        self._records = RecordWriter(path, _RECORD.size)

    def counts(self) -> Snapshot:
        """The counters of the latest record, which another life of the engine goes on from; all else is zero."""
        last = _unpack(self._records.read())
        return Snapshot(**{field: getattr(last, field) for field in _COUNTERS})

    def write(self, snapshot: Snapshot) -> None:
        self._records.write(_RECORD.pack(*(getattr(snapshot, field.name) for field in _FIELDS)))


class SnapshotReader:
    """The file may be made later."""

    def __init__(self, path: Path) -> None:
        self._records = RecordReader(path)

    def read(self) -> Snapshot:
        """The latest record, always a whole one; all zero before there is one."""
        return _unpack(self._records.read())


def _unpack(record: bytes) -> Snapshot:
    if not record:
        return Snapshot()
    return Snapshot(**dict(zip((field.name for field in _FIELDS), _RECORD.unpack(record), strict=True)))
