"""Frames between a server and its template child: a length of 8 bytes, then JSON.

The standard library's JSON, because it carries whatever a client's JSON holds: integers of any size, lone surrogates, NaN.
"""

from __future__ import annotations

import json
import socket
from typing import Any

_LENGTH_BYTES = 8


def encode(value: Any) -> bytes:
    """Raises `TypeError`, `ValueError` or `RecursionError` for what is no plain JSON data."""
    return json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass")


def decode(data: bytes | bytearray) -> Any:
    return json.loads(data.decode("utf-8", "surrogatepass"))


def send(channel: socket.socket, data: bytes) -> None:
    channel.sendall(len(data).to_bytes(_LENGTH_BYTES, "little"))
    channel.sendall(data)


def receive(channel: socket.socket) -> bytearray | None:
    """The next frame; None when the other side is gone."""
    head = _exactly(channel, _LENGTH_BYTES)
    return None if head is None else _exactly(channel, int.from_bytes(head, "little"))


def _exactly(channel: socket.socket, size: int) -> bytearray | None:
    data = bytearray(size)
    view, filled = memoryview(data), 0
    while filled < size:
        count = channel.recv_into(view[filled:])
        if not count:
            return None
        filled += count
    return data
