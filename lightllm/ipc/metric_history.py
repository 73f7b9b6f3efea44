"""The last minutes of a server in shared memory: a ring of samples, which the Metric Server writes and any process reads.

    samples written so far (uint64) | a place for each of the latest ones

A sample is written first and counted then. So a writer that is killed between leaves no half of one, and a reader need
not wait for it: it leaves out the oldest ones, whose places may be written meanwhile.
"""

from __future__ import annotations

import struct
from pathlib import Path

import msgspec

from lightllm.ipc.mapped_file import map_file
from lightllm.protocol.samples import Sample

HISTORY_SECONDS = 600
"""Samples that are kept, one a second."""
_PLACES = HISTORY_SECONDS + 2
"""The reader takes well under a second, in which one sample may come, and one more be half written."""
_COUNT = struct.Struct("<Q")
_NAMES = [field.name for field in msgspec.structs.fields(Sample)]
_SAMPLE = struct.Struct(f"<{len(_NAMES)}d")


class HistoryWriter:
    """Makes the file, or goes on where another Metric Server was killed. Raises `StartupError` where there is no room."""

    def __init__(self, path: Path) -> None:
        self._map = map_file(path, _COUNT.size + _PLACES * _SAMPLE.size)
        # Written by one store: struct fills its place with zeros first, which a reader may see.
        self._count = memoryview(self._map)[: _COUNT.size].cast("Q")

    def append(self, sample: Sample) -> None:
        count = self._count[0]
        _SAMPLE.pack_into(self._map, _place(count), *msgspec.structs.astuple(sample))
        self._count[0] = count + 1


def read_history(path: Path) -> list[Sample]:
    """Oldest first; empty before there is a file."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return []
    (count,) = _COUNT.unpack_from(data)
    first = max(0, count - HISTORY_SECONDS)
    return [Sample(*_SAMPLE.unpack_from(data, _place(number))) for number in range(first, count)]


def read_latest(path: Path) -> Sample | None:
    """None before there is one."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    (count,) = _COUNT.unpack_from(data)
    return Sample(*_SAMPLE.unpack_from(data, _place(count - 1))) if count else None


def columns(samples: list[Sample]) -> dict[str, list[float]]:
    """Field -> its values, in the order of the samples."""
    return {name: [getattr(sample, name) for sample in samples] for name in _NAMES}


def _place(number: int) -> int:
    return _COUNT.size + number % _PLACES * _SAMPLE.size
