"""Connections of strangers, over real sockets: each is ended at a limit, and a stream beside them stays what it is."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
import uvicorn
from support.fake_engine import DEFAULT_ANSWER, FakeEngine
from uvicorn.server import ServerState

from lightllm.http import http_protocol

HEAD = b"POST /tokens HTTP/1.1\r\nHost: x\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
GET = b"GET /nothing HTTP/1.1\r\nHost:x\r\n\r\n"
SENT_AT_MOST = 32 << 20
"""Far more than a connection may take before it is ended, and than the kernel's buffers hold."""
TOKENS = 100


def connect(worker: Any) -> socket.socket:
    return socket.create_connection(("127.0.0.1", worker.port), timeout=20)


def read_all(raw: socket.socket) -> bytes:
    """All that comes until the server ends the connection."""
    received = b""
    with contextlib.suppress(ConnectionResetError):
        while data := raw.recv(1 << 16):
            received += data
    return received


def closed_after(raw: socket.socket, start: bytes, unit: bytes) -> bool:
    """Sends `start`, then `unit` again and again, until the connection is ended. False: all was taken."""
    block = unit * max(1, (1 << 16) // len(unit))
    try:
        raw.sendall(start)
        for _ in range(SENT_AT_MOST // len(block)):
            raw.sendall(block)
    except OSError:
        return True
    return False


@pytest.fixture
def steady(worker: Any, engine: FakeEngine) -> Iterator[Callable[[], None]]:
    """A stream that runs during the test. Calling the value makes sure that it is still running; at its end every
    token must have come, in order."""
    engine.script.endless, engine.script.pause = True, 0.002
    texts: list[str] = []
    stop = threading.Event()

    def read() -> None:
        body = {"inputs": "x", "parameters": {"max_new_tokens": TOKENS}}
        while not stop.is_set():
            text = ""
            with httpx.stream("POST", f"{worker.url}/generate_stream", json=body, timeout=30) as response:
                for line in response.iter_lines():
                    if line.startswith("data:"):
                        text += json.loads(line[5:])["token"]["text"]
            texts.append(text)

    thread = threading.Thread(target=read)
    thread.start()
    engine.wait_for(lambda: engine.added)

    def check() -> None:
        before = len(engine.added)
        engine.wait_for(lambda: texts and len(engine.added) > before, 60)

    yield check
    stop.set()
    thread.join(60)
    assert not thread.is_alive()
    assert len(set(texts)) == 1 and texts[0].count(DEFAULT_ANSWER[:5]) >= 3


ENDLESS = {
    "request line": (b"GET /", b"a", b"431"),
    "method": (b"", b"G", b"400"),
    "header name": (GET[:-2] + b"X", b"y", b"431"),
    "header value": (GET[:-2] + b"X: ", b"y", b"431"),
    "headers": (GET[:-2], b"X: y\r\n", b"431"),
    "line breaks": (b"", b"\r\n", b"400"),
    "trailer": (CHUNKED + b"0\r\nX: ", b"y", b"431"),
    "trailer name": (CHUNKED + b"0\r\nX", b"y", b"431"),
    "chunk extension": (CHUNKED + b"5;a=", b"a", b"431"),
    "chunks of one byte with extensions": (CHUNKED, b"1;" + b"a" * 50 + b"\r\nx\r\n", b"431"),
    "chunks of one byte": (CHUNKED, b"1\r\nx\r\n", b"413"),
    "body": (HEAD + b"Content-Length: 9999999\r\n\r\n", b"x", b"413"),
    "body without a route": (b"POST /nothing HTTP/1.1\r\nHost: x\r\nContent-Length: 9999999\r\n\r\n", b"x", b"404"),
}  # fmt: skip


@pytest.mark.parametrize("name", ENDLESS)
def test_what_never_ends_is_refused_and_the_connection_closed(
    worker: Any, steady: Callable[[], None], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    start, unit, status = ENDLESS[name]
    with connect(worker) as raw:  # the reason can be read by who stops in time
        raw.sendall(start + unit * ((7 << 20 if unit == b"1\r\nx\r\n" else 200_000) // len(unit)))
        answer = read_all(raw)
    assert answer.startswith(b"HTTP/1.1 " + status), answer[:200]
    assert b"connection: close" in answer and b'"message":' in answer
    monkeypatch.setattr(http_protocol, "LINGER_BYTES", 1 << 20)
    with connect(worker) as raw:
        assert closed_after(raw, start, unit)
    steady()


def test_requests_pipelined_without_end_are_held_to_a_bound(worker: Any, steady: Callable[[], None]) -> None:
    """The client sends on and reads nothing: the server reads no further."""
    with connect(worker) as raw:
        raw.settimeout(2)
        with contextlib.suppress(TimeoutError):
            for _ in range((64 << 20) // (len(GET) * 1000)):
                raw.sendall(GET * 1000)
            raise AssertionError("all of it was read")
        held = [len(connection._held) for connection in worker.connections]
        assert max(held) <= http_protocol.MAX_HELD_BYTES + (1 << 18)
        steady()


def test_requests_pipelined_in_one_packet_are_all_answered_in_turns(
    worker: Any, steady: Callable[[], None]
) -> None:
    count = 1000
    with connect(worker) as raw:
        sender = threading.Thread(target=raw.sendall, args=(GET * count + b"GET / HTTP/1.0\r\n\r\n",))
        sender.start()
        answers = read_all(raw)
        sender.join()
    assert answers.count(b"HTTP/1.1 404") == count and answers.count(b"HTTP/1.1 200") == 1
    steady()


@pytest.mark.parametrize(
    ("end", "status"),
    [
        (b"nonsense\r\n\r\n", b"400"),
        (b"GET / HTTP/1.1\r\n\r\n", b"400"),
        (GET[:-2] + b"X: " + b"y" * 99_999, b"431"),
        (HEAD + b"Transfer-Encoding: gzip, chunked\r\n\r\n", b"501"),
    ],
    ids=["nonsense", "no host", "large", "coding"],
)
def test_valid_requests_before_a_malformed_one_are_answered(worker: Any, end: bytes, status: bytes) -> None:
    with connect(worker) as raw:
        raw.sendall(GET * 2 + end)
        assert re.findall(rb"HTTP/1\.1 (\d{3}) ", read_all(raw)) == [b"404", b"404", status]


REFUSED_EARLY = {
    "no key": ("/generate", {}, 401),
    "wrong key": ("/v1/completions", {"Authorization": "Bearer wrong"}, 401),
    "no route": ("/nothing", {"Authorization": "Bearer right"}, 404),
    "no such method": ("/version", {"Authorization": "Bearer right"}, 405),
    "compressed": ("/generate", {"Authorization": "Bearer right", "Content-Encoding": "gzip"}, 415),
}


@pytest.fixture(scope="module")
def guarded(start_worker: Callable[..., Any]) -> Any:
    return start_worker(worker=11, api_key=["right"])


@pytest.mark.parametrize(
    "framing", [b"Content-Length: 1000", b"Transfer-Encoding: chunked"], ids=["length", "chunks"]
)
@pytest.mark.parametrize("name", REFUSED_EARLY)
def test_who_is_refused_before_the_body_has_come_is_read_no_further(
    guarded: Any, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch, name: str, framing: bytes
) -> None:
    monkeypatch.setattr(http_protocol, "LINGER_SECONDS", 0.2)
    path, headers, status = REFUSED_EARLY[name]
    lines = b"".join(f"{key}: {value}\r\n".encode() for key, value in headers.items())
    with connect(guarded) as raw:
        raw.sendall(b"POST %b HTTP/1.1\r\nHost: x\r\n%b%b\r\n\r\n" % (path.encode(), lines, framing))
        answer = read_all(raw)  # ends although the body never comes
        assert answer.startswith(b"HTTP/1.1 %d " % status) and b"connection: close" in answer
        engine.wait_for(lambda: not guarded.connections)


@pytest.mark.parametrize(
    ("start", "unit"),
    [
        (HEAD + b"Content-Length: 1000\r\n\r\n", b"x"),
        (HEAD + b"Content-Length: 1000\r\n\r\n", b""),
        (CHUNKED, b"1\r\nx\r\n"),
        (CHUNKED + b"1\r\nx\r\n0\r\n", b"X: y\r\n"),
        (CHUNKED + b"1;", b"a"),
    ],
    ids=["body", "nothing", "chunks", "trailers", "chunk extension"],
)
def test_a_body_that_comes_too_slowly_is_given_up(
    worker: Any, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch, start: bytes, unit: bytes
) -> None:
    monkeypatch.setattr(http_protocol, "BODY_SECONDS", 0.3)
    monkeypatch.setattr(http_protocol, "BODY_BYTES_A_SECOND", 10_000)
    with connect(worker) as raw:
        raw.sendall(start)
        stop = threading.Event()

        def dribble() -> None:
            with contextlib.suppress(OSError):
                while not stop.wait(0.02):
                    raw.sendall(unit)

        thread = threading.Thread(target=dribble)
        thread.start()
        answer = read_all(raw)
        stop.set()
        thread.join()
    assert answer.startswith(b"HTTP/1.1 408") and b"body came too slowly" in answer


def test_a_body_that_comes_steadily_may_take_longer_than_the_limit(
    worker: Any, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_protocol, "BODY_SECONDS", 1.0)
    monkeypatch.setattr(http_protocol, "BODY_BYTES_A_SECOND", 1)
    text = b'{"text": "' + b"x" * 10 + b'"}'
    with connect(worker) as raw:
        raw.sendall(HEAD + b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(text))
        for at in range(len(text)):
            raw.sendall(text[at : at + 1])
            threading.Event().wait(0.1)
        assert read_all(raw).startswith(b"HTTP/1.1 200")


class UnreadTransport:
    """Takes everything and never gets rid of it, as for a client that reads nothing; too little to pause the writer."""

    def __init__(self) -> None:
        self.aborted = asyncio.Event()
        self.closing = False
        self.written = b""

    def get_extra_info(self, name: str) -> None:
        return None

    def write(self, data: bytes) -> None:
        self.written += data

    def is_closing(self) -> bool:
        return self.closing

    def close(self) -> None:
        self.closing = True

    def abort(self) -> None:
        self.aborted.set()


@pytest.mark.parametrize("end", [b"Connection: close\r\n\r\n", b"\r\n"], ids=["last answer", "idle"])
def test_a_closed_connection_whose_answer_nobody_reads_is_dropped(
    monkeypatch: pytest.MonkeyPatch, end: bytes
) -> None:
    monkeypatch.setattr(http_protocol, "WRITE_SECONDS", 0.01)

    async def application(scope: Any, receive: Any, send: Any) -> None:
        headers = [(b"content-length", b"2")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"ok"})

    async def connection() -> UnreadTransport:
        config = uvicorn.Config(application, interface="asgi3", log_config=None, timeout_keep_alive=0)
        config.load()
        protocol = http_protocol.BoundedHttpProtocol(config, ServerState(), {})
        transport = UnreadTransport()
        protocol.connection_made(transport)  # type: ignore[arg-type]
        protocol.data_received(GET[:-2] + end)
        await asyncio.wait_for(transport.aborted.wait(), 20)
        return transport

    transport = asyncio.run(connection())
    assert transport.closing and transport.written.endswith(b"ok")
