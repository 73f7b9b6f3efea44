"""Offers to upgrade a connection: the request is answered as if there were none, its body included."""

from __future__ import annotations

import socket
from typing import Any

import httpx
import pytest

BODY = b'{"text": "What is AI?"}'
OFFER = b"Connection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AAEAAEAAAAIAAAAB\r\nUpgrade: h2c\r\n"
"""As Java's HttpClient sends it with every request."""


def exchange(worker: Any, *parts: bytes) -> list[bytes]:
    """The answers on one connection, whose last request asks to close it."""
    with socket.create_connection(("127.0.0.1", worker.port), timeout=10) as raw:
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for part in parts:
            raw.sendall(part)
        received = b""
        while data := raw.recv(65536):
            received += data
    return received.split(b"HTTP/1.1 ")[1:]


def head(*headers: bytes, length: bytes = b"Content-Length: %d" % len(BODY)) -> bytes:
    lines = [b"POST /tokens HTTP/1.1", b"Host: x", length, *headers]
    return b"\r\n".join(lines) + b"\r\n"


@pytest.mark.parametrize("cuts", [(), (40,), (230,)])
def test_a_request_that_offers_http2_is_answered(client: httpx.Client, worker: Any, cuts: tuple[int]) -> None:
    request = head() + OFFER + b"\r\n" + BODY + head(b"Connection: close") + b"\r\n" + BODY
    borders = [0, *cuts, len(request)]
    parts = [request[start:end] for start, end in zip(borders, borders[1:])]
    first, second = exchange(worker, *parts)
    assert first.startswith(b"200 OK") and b'"ntokens":' in first
    assert second.startswith(b"200 OK")


def test_a_chunked_body_behind_an_offer_is_read(client: httpx.Client, worker: Any) -> None:
    start = head(length=b"Transfer-Encoding: chunked") + OFFER.replace(b"Upgrade, ", b"close, Upgrade, ", 1)
    (answer,) = exchange(worker, start + b"\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY))
    assert answer.startswith(b"200 OK") and b'"ntokens":' in answer


def test_websockets_and_tunnels_are_refused(client: httpx.Client, worker: Any) -> None:
    websocket = b"GET /ws HTTP/1.1\r\nHost: x\r\nConnection: close, Upgrade\r\nUpgrade: websocket\r\n\r\n"
    assert exchange(worker, websocket)[0].startswith(b"404")
    assert exchange(worker, b"CONNECT x:80 HTTP/1.1\r\nHost: x\r\n\r\n")[0].startswith(b"400")


def test_an_offer_cannot_smuggle_a_request_behind_the_limit_on_headers(
    client: httpx.Client, worker: Any
) -> None:
    (answer,) = exchange(worker, head() + OFFER + b"X: " + b"y" * 40_000 + b"\r\n\r\n" + BODY)
    assert answer.startswith(b"400")
