"""The global state of the server in shared memory: written by the Router alone, read by every Http worker.

A fixed record in a memory-mapped file of the runtime folder, guarded by a sequence number: odd while it is written.
"""

from __future__ import annotations

import mmap
import struct
from pathlib import Path

import msgspec

from lightllm.ipc.mapped_file import map_file

_SEQUENCE = struct.Struct("<Q")


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
    aborted: int = 0
    not_finite: int = 0
    """Requests that ended because their logits were no numbers."""
    row_failures: int = 0
    """Requests that ended because their row could not be prepared."""
    in_flight_rounds: int = 0
    heartbeat: float = 0.0
    """time.monotonic() of the Router's last turn, at least once a second; 0: it has had none."""
    round_due_since: float = 0.0
    """time.monotonic(): there is work since then, and no result of a round has come; 0: there is no work."""
    text_due_since: float = 0.0
    """time.monotonic(): the Detokenizer has not answered an `Echo` since then; 0: it has answered all."""


_FIELDS = msgspec.structs.fields(Snapshot)
_RECORD = struct.Struct("<" + "".join("d" if field.type is float else "q" for field in _FIELDS))
_SIZE = _SEQUENCE.size + _RECORD.size


class SnapshotWriter:
    """Creates the file, or takes over that of a Router that died; one writer at a time. Raises `StartupError`."""

    def __init__(self, path: Path) -> None:
        self._map = map_file(path, _SIZE)
        (sequence,) = _SEQUENCE.unpack_from(self._map, 0)
        self._sequence = sequence + sequence % 2

    def write(self, snapshot: Snapshot) -> None:
        record = _RECORD.pack(*(getattr(snapshot, field.name) for field in _FIELDS))
        _SEQUENCE.pack_into(self._map, 0, self._sequence + 1)
        self._map[_SEQUENCE.size :] = record
        self._sequence += 2
        _SEQUENCE.pack_into(self._map, 0, self._sequence)


class SnapshotReader:
    def __init__(self, path: Path) -> None:
        with path.open("rb") as file:
            self._map = mmap.mmap(file.fileno(), _SIZE, prot=mmap.PROT_READ)

    def read(self) -> Snapshot:
        """A consistent copy; retries while the writer is at work (a write takes microseconds)."""
        for _ in range(1000):
            (before,) = _SEQUENCE.unpack_from(self._map, 0)
            record = self._map[_SEQUENCE.size :]
            (after,) = _SEQUENCE.unpack_from(self._map, 0)
            if before == after and before % 2 == 0:
                break
        return Snapshot(**dict(zip((field.name for field in _FIELDS), _RECORD.unpack(record), strict=True)))
