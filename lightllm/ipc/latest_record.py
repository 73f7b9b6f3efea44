"""The latest state of something, in shared memory: one process writes it, any process reads it.

A memory-mapped file holds two records, each with its checksum, and a byte that says which one is the latest: a writer
fills the other one, then changes the byte. So a writer that is killed in the middle of a record leaves the one before
it, and a record that was overwritten while it was copied is told by its checksum.

    latest (uint8: 1 or 2; 0: there is none yet) | record 1 | record 2        record: CRC-32, length (uint32), data
"""

from __future__ import annotations

import mmap
import struct
import zlib
from pathlib import Path

from lightllm.ipc.mapped_file import map_file

_HEAD = struct.Struct("<II")


class RecordWriter:
    """Makes the file, with room for records of `capacity` bytes, or takes over that of a writer that died; one writer at a
    time. Raises `StartupError`."""

    def __init__(self, path: Path, capacity: int) -> None:
        self._capacity = capacity
        self._map = map_file(path, 1 + 2 * (_HEAD.size + capacity))

    def read(self) -> bytes:
        """The latest record, perhaps of a writer before this one; empty: there is none."""
        return _read(self._map)

    def write(self, data: bytes) -> None:
        if len(data) > self._capacity:
            raise ValueError(f"a record of {len(data)} bytes, where {self._capacity} have room")
        other = 2 if self._map[0] == 1 else 1
        place = _place(self._map, other)
        self._map[place : place + _HEAD.size + len(data)] = _HEAD.pack(zlib.crc32(data), len(data)) + data
        self._map[0] = other


class RecordReader:
    """The file may be made later."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._map: mmap.mmap | None = None

    def read(self) -> bytes:
        """The latest record, always a whole one; empty before there is one."""
        if self._map is None:
            try:
                with self._path.open("rb") as file:
                    self._map = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
            except FileNotFoundError:
                return b""
        return _read(self._map)


def _read(memory: mmap.mmap) -> bytes:
    """Copies again if the writer came round meanwhile: a copy takes microseconds, and two writes milliseconds."""
    while latest := memory[0]:
        place = _place(memory, latest)
        checksum, length = _HEAD.unpack_from(memory, place)
        data = memory[place + _HEAD.size : place + _HEAD.size + length]
        if len(data) == length and zlib.crc32(data) == checksum:
            return data
    return b""


def _place(memory: mmap.mmap, record: int) -> int:
    """Where record 1 or 2 begins."""
    return 1 + (record - 1) * (len(memory) - 1) // 2
