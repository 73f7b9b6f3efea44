"""The global state of the server in shared memory: written by the Router alone, read by every Http worker.

A memory-mapped file of the runtime folder holds two records, each with its checksum, and a byte that says which one is
the latest: a writer fills the other one, then changes the byte. So a writer that is killed in the middle of a record
leaves the one before it, and a record that was overwritten while it was copied is told by its checksum.

    latest (uint8: 1 or 2; 0: there is none yet) | record 1, CRC-32 | record 2, CRC-32
"""

from __future__ import annotations

import mmap
import struct
import zlib
from pathlib import Path

import msgspec

from lightllm.ipc.mapped_file import map_file
from lightllm.protocol.metrics import SNAPSHOT_METRICS

_CHECKSUM = struct.Struct("<I")


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
_PART = _RECORD.size + _CHECKSUM.size
_SIZE = 1 + 2 * _PART


class SnapshotWriter:
    """Creates the file, or takes over that of a Router that died; one writer at a time. Raises `StartupError`."""

    def __init__(self, path: Path) -> None:
        self._map = map_file(path, _SIZE)

    def counts(self) -> Snapshot:
        """The counters of the latest record, which another life of the engine goes on from; all else is zero."""
        last = _read(self._map)
        return Snapshot(**{field: getattr(last, field) for field in _COUNTERS})

    def write(self, snapshot: Snapshot) -> None:
        record = _RECORD.pack(*(getattr(snapshot, field.name) for field in _FIELDS))
        other = 2 if self._map[0] == 1 else 1
        self._map[_place(other)] = record + _CHECKSUM.pack(zlib.crc32(record))
        self._map[0] = other


class SnapshotReader:
    def __init__(self, path: Path) -> None:
        with path.open("rb") as file:
            self._map = mmap.mmap(file.fileno(), _SIZE, prot=mmap.PROT_READ)

    def read(self) -> Snapshot:
        """The latest record, always a whole one; all zero before there is one."""
        return _read(self._map)


def _read(memory: mmap.mmap) -> Snapshot:
    """Copies again if the writer came round meanwhile: a copy takes a microsecond, and two writes milliseconds."""
    while latest := memory[0]:
        part = memory[_place(latest)]
        record, (checksum,) = part[: _RECORD.size], _CHECKSUM.unpack_from(part, _RECORD.size)
        if zlib.crc32(record) == checksum:
            return Snapshot(
                **dict(zip((field.name for field in _FIELDS), _RECORD.unpack(record), strict=True))
            )
    return Snapshot()


def _place(record: int) -> slice:
    """Where record 1 or 2 is, with its checksum."""
    start = 1 + (record - 1) * _PART
    return slice(start, start + _PART)
