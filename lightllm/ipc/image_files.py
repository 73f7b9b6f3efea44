"""Files of the image cache: bytes of images, and their embeddings as raw tensors that readers map without a copy.

    <folder>/<item id>.data         what the Visual Server makes the embedding of
    <folder>/<item id>.embedding    header, then from byte 4096 on the tensor, little-endian, in C order
    <folder>/.<item id>.<kind>.<process>   one of them while it is written

A file gets its name when it is whole, and is never changed afterwards. A reader keeps what it has mapped, though the file be
removed meanwhile. A writer tells the Cache Manager, which alone removes files.
"""

from __future__ import annotations

import contextlib
import math
import mmap
import os
import re
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

Buffer = bytes | bytearray | memoryview | mmap.mmap

ITEM_SIZES = {"float32": 4, "float16": 2, "bfloat16": 2}
"""Bytes of one number, by dtype."""
_TENSOR_START = 4096
"""Offset of the tensor in an embedding file: one page."""
_LENGTH_BYTES = 4
_NAME = re.compile(r"(\d+)\.(data|embedding)")
_UNFINISHED_NAME = re.compile(r"\.(\d+)\.(?:data|embedding)\.(\d+)\.\d+")
"""Item, kind, and the process and thread that write it: each has a file of its own."""


class EmbeddingHeader(msgspec.Struct, frozen=True):
    key: str
    """Content key of the image."""
    first_id: int
    tokens: int
    dtype: str
    """A name in `ITEM_SIZES`."""
    shape: list[int]


class Embedding(msgspec.Struct, frozen=True):
    """A mapped file. The mapping is private: what a process writes to it stays there."""

    header: EmbeddingHeader
    map: mmap.mmap
    offset: int = _TENSOR_START
    """Byte of `map` where the tensor begins: `torch.frombuffer(map, dtype=..., offset=offset)`."""

    @property
    def data(self) -> memoryview:
        """The tensor's bytes."""
        return memoryview(self.map)[self.offset :]


def embedding_size(shape: Sequence[int], dtype: str) -> int:
    """Bytes of an embedding's file."""
    return _TENSOR_START + math.prod(shape) * ITEM_SIZES[dtype]


def largest_size(data_bytes: int, shape: Sequence[int], dtype: str) -> int:
    """Bytes that an item takes at most: while it is encoded both files are there."""
    return data_bytes + embedding_size(shape, dtype)


class ImageFiles:
    """The folder, for any process. Every method may raise `OSError`: `FileNotFoundError` when the item is gone."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def write_data(self, item_id: int, data: Buffer) -> None:
        self._write(f"{item_id}.data", data)

    def read_data(self, item_id: int) -> bytes:
        return self._path(item_id, "data").read_bytes()

    def write_embedding(self, item_id: int, header: EmbeddingHeader, tensor: Buffer) -> None:
        """tensor: the bytes of a C-ordered array. Raises `ValueError` if the header tells of another length."""
        expected = embedding_size(header.shape, header.dtype) - _TENSOR_START
        tensor = memoryview(tensor).cast("B")
        packed = msgspec.msgpack.encode(header)
        room = _TENSOR_START - _LENGTH_BYTES
        if len(tensor) != expected or len(packed) > room:
            raise ValueError(
                f"an embedding has {len(tensor)} bytes instead of {expected}, or its header {len(packed)}, more than {room}"
            )
        start = len(packed).to_bytes(_LENGTH_BYTES, "little") + packed
        self._write(f"{item_id}.embedding", start.ljust(_TENSOR_START, b"\0"), tensor)

    def open_embedding(self, item_id: int) -> Embedding:
        """Raises `ValueError` if the file is no embedding."""
        with self._path(item_id, "embedding").open("rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        length = int.from_bytes(mapped[:_LENGTH_BYTES], "little")
        header: EmbeddingHeader = msgspec.msgpack.decode(
            mapped[_LENGTH_BYTES : _LENGTH_BYTES + length], type=EmbeddingHeader
        )
        if header.dtype not in ITEM_SIZES or embedding_size(header.shape, header.dtype) != len(mapped):
            raise ValueError(f"{file.name} does not have the length that its header tells")
        return Embedding(header, mapped)

    def has_data(self, item_id: int) -> bool:
        return self._path(item_id, "data").exists()

    def has_embedding(self, item_id: int) -> bool:
        return self._path(item_id, "embedding").exists()

    # -- for the Cache Manager

    def size_of_embedding(self, item_id: int) -> int:
        """Bytes of the file."""
        return self._path(item_id, "embedding").stat().st_size

    def remove_data(self, item_id: int) -> None:
        self._path(item_id, "data").unlink(missing_ok=True)

    def remove_embedding(self, item_id: int) -> None:
        self._path(item_id, "embedding").unlink(missing_ok=True)

    def remove(self, item_id: int) -> None:
        self.remove_data(item_id)
        self.remove_embedding(item_id)

    def items(self) -> Iterator[tuple[int, bool]]:
        """(item id, whether it is the embedding) of every whole file, oldest first."""
        found = [(entry.stat().st_mtime_ns, match) for entry in os.scandir(self.folder)
                 if (match := _NAME.fullmatch(entry.name))]  # fmt: skip
        for _, match in sorted(found, key=lambda pair: pair[0]):
            yield int(match[1]), match[2] == "embedding"

    def remove_unfinished(self) -> None:
        """Removes what processes that are gone were writing."""
        for path in list(self.folder.iterdir()):
            match = _UNFINISHED_NAME.fullmatch(path.name)
            if match and not Path("/proc", match[2]).exists():
                path.unlink(missing_ok=True)

    def _path(self, item_id: int, kind: str) -> Path:
        return self.folder / f"{item_id}.{kind}"

    def _write(self, name: str, *parts: Buffer) -> None:
        unfinished = self.folder / f".{name}.{os.getpid()}.{threading.get_native_id()}"
        try:
            with unfinished.open("wb", buffering=0) as file:
                for part in parts:
                    rest = memoryview(part).cast("B")
                    while rest:
                        rest = rest[file.write(rest) :]
            unfinished.replace(self.folder / name)
        except OSError:
            with contextlib.suppress(OSError):
                unfinished.unlink()
            raise
