"""A map of the KV memory, for people: the Router draws it while somebody looks, and any process reads it.

Whoever wants to see it says so in shared memory; the Router, which looks there when it writes its snapshot, then draws the
map once a second, until nobody has asked for a while. So it costs nothing on a server that nobody watches.
"""

from __future__ import annotations

import mmap
import struct
from pathlib import Path

import msgspec

from lightllm.ipc.latest_record import RecordReader, RecordWriter
from lightllm.ipc.mapped_file import map_file

MAP_CELLS = 1536
"""Pieces of the memory on the map, each with as many slots as the next one, or one more; as many as there are slots, if
those are fewer."""
DRAW_SECONDS = 1.0
"""Between two maps, while somebody looks."""
WATCH_SECONDS = 5.0
"""So long somebody is taken to look, who has asked once."""
_TIME = struct.Struct("<d")
_ROOM = 1024 + 3 * 5 * MAP_CELLS
"""Bytes of a map: three numbers a cell, of five bytes at most."""


class Cells(msgspec.Struct):
    """A list each, in the order of the slots: a number of slots for every cell."""

    size: list[int]
    own: list[int]
    """Of the running requests' own."""
    cached: list[int]
    """Of the radix tree's."""


class KvMap(msgspec.Struct):
    """Slots by owner. own + cached + free = slots."""

    drawn: float
    """time.monotonic()"""
    slots: int
    own: int
    """What running requests have beside their prefixes in the radix tree."""
    cached: int
    """All of the radix tree's."""
    read: int
    """Those of the radix tree's that running requests read, and that cannot be evicted."""
    free: int
    nodes: int
    """Of the radix tree."""
    cells: Cells


class KvMapWriter:
    """The Router's end. Makes the files, or takes over those of a Router that died. Raises `StartupError`."""

    def __init__(self, path: Path) -> None:
        self._records = RecordWriter(path, _ROOM)
        self._watched = map_file(_watch_file(path), _TIME.size)
        self._drawn = float("-inf")

    def due(self, now: float) -> bool:
        """Whether somebody looks, and the last map is old. now: `time.monotonic()`."""
        (asked,) = _TIME.unpack_from(self._watched)
        return asked > 0.0 and now - asked < WATCH_SECONDS and now - self._drawn >= DRAW_SECONDS

    def write(self, kv_map: KvMap) -> None:
        self._records.write(msgspec.msgpack.encode(kv_map))
        self._drawn = kv_map.drawn


class KvMapReader:
    """The files may be made later."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._records = RecordReader(path)
        self._watched: memoryview[float] | None = None

    def watch(self, now: float) -> None:
        """Somebody looks, for a few seconds. now: `time.monotonic()`."""
        if self._watched is None:
            try:
                with _watch_file(self._path).open("r+b") as file:
                    # Written by one store: struct fills its place with zeros first, which the writer may see.
                    self._watched = memoryview(mmap.mmap(file.fileno(), 0)).cast("d")
            except FileNotFoundError:
                return
        self._watched[0] = now

    def read(self) -> KvMap | None:
        """The latest map; None before there is one."""
        record = self._records.read()
        return msgspec.msgpack.decode(record, type=KvMap) if record else None


def _watch_file(path: Path) -> Path:
    return path.with_name(f"{path.name}-watched")
