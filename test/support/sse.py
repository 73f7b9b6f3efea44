"""Server-sent events as clients read them."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable

import httpx


def chunks(response: httpx.Response) -> list[dict]:
    """The parsed events; checks the framing and the terminator."""
    assert response.status_code == 200, response.text
    frames = response.content.split(b"\n\n")
    assert frames.pop() == b"" and frames.pop() == b"data: [DONE]"
    return [json.loads(frame.removeprefix(b"data: ")) for frame in frames]


def http_chunks(
    url: str, path: str, body: dict, on_chunk: Callable[[list[bytes]], None] = lambda chunks: None
) -> tuple[bytes, list[bytes]]:
    """The head of an answer, and its HTTP chunks as they were framed, the empty last one left out. `on_chunk` is told those
    so far, whenever one has come."""
    data = json.dumps(body).encode()
    host, port = url.removeprefix("http://").rsplit(":", 1)
    head = f"POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n"
    with socket.create_connection((host, int(port)), timeout=30) as raw, raw.makefile("rb") as answer:
        raw.sendall(head.encode() + b"\r\n" + data)
        lines = [*iter(answer.readline, b"\r\n")]
        frames = []
        while size := int(answer.readline(), 16):
            frames.append(answer.read(size))
            assert answer.readline() == b"\r\n"
            on_chunk(frames)
        return b"".join(lines), frames
