"""Who is refused before the body has come reads the answer, also one that sends all before it reads, over TCP and over TLS."""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.fake_engine import FakeEngine

from lightllm.http import acceptor, http_protocol

PEM = Path(__file__).parents[1] / "support" / "tls"
LARGER_THAN_ALL_BUFFERS = 40 << 20
KEY = b"Authorization: Bearer right\r\n"
REFUSED: dict[str, tuple[bytes, bytes, int]] = {
    "no key": (b"", b"Content-Length: %d" % LARGER_THAN_ALL_BUFFERS, 401),
    "too large": (KEY, b"Content-Length: %d" % LARGER_THAN_ALL_BUFFERS, 413),
    "too large in chunks": (KEY, b"Transfer-Encoding: chunked", 413),
    "compressed": (KEY + b"Content-Encoding: gzip\r\n", b"Content-Length: %d" % LARGER_THAN_ALL_BUFFERS, 415),
    "no request": (b"Content-Length: x\r\n", b"Content-Length: 1", 400),
}
"""Headers beside `Host`, how the body is framed, the status."""


@pytest.fixture(scope="module", params=["tcp", "tls"])
def guarded(request: pytest.FixtureRequest, start_worker: Callable[..., Any]) -> Any:
    if request.param == "tcp":
        return start_worker(worker=12, api_key=["right"])
    files = {"ssl_certfile": str(PEM / "cert.pem"), "ssl_keyfile": str(PEM / "key.pem")}
    return start_worker(worker=13, api_key=["right"], **files)


def connect(worker: Any) -> socket.socket:
    raw = socket.create_connection(("127.0.0.1", worker.port), timeout=20)
    if worker.url.startswith("https"):
        trust = ssl.create_default_context(cafile=str(PEM / "cert.pem"))
        return trust.wrap_socket(raw, server_hostname="127.0.0.1")
    return raw


def send_all(raw: socket.socket, framing: bytes) -> None:
    part = b"x" * (1 << 20)
    for _ in range(LARGER_THAN_ALL_BUFFERS // len(part)):
        raw.sendall(b"%x\r\n%b\r\n" % (len(part), part) if b"chunked" in framing else part)


def read_answer(raw: socket.socket) -> tuple[int, Any]:
    """Status and body of an answer that has a length."""
    head, body = b"", b""
    while b"\r\n\r\n" not in head:
        data = raw.recv(65536)
        assert data, head
        head += data
    head, _, body = head.partition(b"\r\n\r\n")
    headers = dict(line.split(b": ", 1) for line in head.split(b"\r\n")[1:])
    assert headers[b"connection"] == b"close"
    while len(body) < int(headers[b"content-length"]):
        body += raw.recv(65536)
    return int(head.split()[1]), json.loads(body)


@pytest.mark.parametrize("name", REFUSED)
def test_a_client_that_sends_all_before_it_reads_sees_why_it_is_refused(
    guarded: Any, engine: FakeEngine, name: str
) -> None:
    headers, framing, status = REFUSED[name]
    with connect(guarded) as raw:
        raw.sendall(b"POST /generate HTTP/1.1\r\nHost: x\r\n%b%b\r\n\r\n" % (headers, framing))
        send_all(raw, framing)
        answer = read_answer(raw)
    assert answer[0] == status and answer[1]["message"]
    engine.wait_for(lambda: not guarded.connections)


def test_a_draining_server_says_so_to_a_client_that_sends_all_before_it_reads(
    guarded: Any, engine: FakeEngine
) -> None:
    guarded.view.draining = True
    try:
        with connect(guarded) as raw:
            raw.sendall(b"POST /generate HTTP/1.1\r\nHost: x\r\n%bContent-Length: 999999\r\n\r\n" % KEY)
            raw.sendall(b"x" * 999_999)
            assert read_answer(raw)[0] == 503
    finally:
        guarded.view.draining = False


@pytest.mark.parametrize("sends", [False, True], ids=["silent", "sends on"])
def test_the_connection_of_one_that_was_refused_ends(
    guarded: Any, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch, sends: bool
) -> None:
    """At the end of a time, or of what is read of it; nor does the end of TLS wait for ever."""
    monkeypatch.setattr(acceptor, "SHUTDOWN_SECONDS", 0.3)
    monkeypatch.setattr(
        http_protocol, "LINGER_BYTES" if sends else "LINGER_SECONDS", 1 << 20 if sends else 0.2
    )
    with connect(guarded) as raw:
        raw.sendall(b"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n")
        assert read_answer(raw)[0] == 401
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            if sends:
                send_all(raw, b"")
                raise AssertionError("everything was read")
            assert raw.recv(1) == b""
        engine.wait_for(lambda: not guarded.connections)
