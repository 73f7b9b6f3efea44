"""What clients may do with a connection: offers to upgrade it, half of it closed, HTTP/1.0, expectations, HEAD."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from support.fake_engine import DEFAULT_ANSWER, FakeEngine

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
    assert answer.startswith(b"431")


def generate(stream: bool, version: bytes = b"1.1", *headers: bytes, tokens: int = 50) -> bytes:
    """A request of a generation, on the wire."""
    body = json.dumps({"inputs": "x", "parameters": {"max_new_tokens": tokens}}).encode()
    path = b"/generate_stream" if stream else b"/generate"
    lines = [b"POST %b HTTP/%b" % (path, version), b"Host: x", b"Content-Length: %d" % len(body), *headers]
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


def text_of(answer: bytes) -> str:
    """The generated text of an answer, whole or streamed."""
    _, _, body = answer.partition(b"\r\n\r\n")
    if b"text/event-stream" not in answer:
        return str(json.loads(body)["generated_text"][0])
    events = [line[5:] for line in body.splitlines() if line.startswith(b"data:")]
    return "".join(json.loads(event)["token"]["text"] for event in events)


def read_all(raw: socket.socket) -> bytes:
    received = b""
    while data := raw.recv(65536):
        received += data
    return received


@pytest.mark.parametrize("version", [b"1.0", b"1.1"])
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("moment", ["at once", "while it runs"])
def test_a_client_that_closes_its_half_is_answered(
    client: httpx.Client, worker: Any, engine: FakeEngine, version: bytes, stream: bool, moment: str
) -> None:
    engine.script.hold = True
    with socket.create_connection(("127.0.0.1", worker.port), timeout=20) as raw:
        raw.sendall(generate(stream, version))
        if moment == "while it runs":
            engine.wait_for(lambda: engine.active == 1)
        raw.shutdown(socket.SHUT_WR)
        engine.wait_for(lambda: engine.active == 1)
        threading.Timer(0.3, setattr, (engine.script, "hold", False)).start()
        answer = read_all(raw)
    answer = answer.replace(b"HTTP/1.1 100 Continue\r\n\r\n", b"")
    assert answer.startswith(b"HTTP/1.1 200 OK\r\n") and text_of(answer) == DEFAULT_ANSWER
    assert not engine.aborted


def test_all_requests_before_the_half_close_are_answered(client: httpx.Client, worker: Any) -> None:
    with socket.create_connection(("127.0.0.1", worker.port), timeout=20) as raw:
        raw.sendall(generate(False) * 3 + b"GET /version HTTP/1.1\r\nHost: x\r\n\r\nGET /version HT")
        raw.shutdown(socket.SHUT_WR)
        answer = read_all(raw)
    assert answer.count(DEFAULT_ANSWER.encode()) == 3 and answer.count(b'{"version":') == 1


@pytest.mark.parametrize("version", [b"1.0", b"1.1"])
@pytest.mark.parametrize("moment", ["waiting", "streaming", "half closed before"])
def test_a_client_that_left_an_idle_stream_is_noticed(
    client: httpx.Client, worker: Any, engine: FakeEngine, version: bytes, moment: str
) -> None:
    """Nothing is written to it any more, so nothing but its end of file could tell."""
    engine.script.endless, engine.script.hold = True, moment != "streaming"
    engine.script.pause = 0.05
    raw = socket.create_connection(("127.0.0.1", worker.port), timeout=10)
    raw.sendall(generate(True, version, tokens=400))
    assert raw.recv(15) == b"HTTP/1.1 200 OK"
    engine.script.hold = True
    if moment == "half closed before":
        raw.shutdown(socket.SHUT_WR)
        assert raw.recv(65536)
    raw.close()
    engine.wait_for(lambda: engine.aborted and worker.engine.active == 0, 20)


def test_a_client_that_left_before_a_whole_answer_is_noticed_after_a_half_close(
    client: httpx.Client, worker: Any, engine: FakeEngine
) -> None:
    engine.script.hold = True
    raw = socket.create_connection(("127.0.0.1", worker.port), timeout=10)
    raw.sendall(generate(False))
    raw.shutdown(socket.SHUT_WR)
    engine.wait_for(lambda: engine.active == 1)
    raw.close()
    engine.wait_for(lambda: engine.aborted and worker.engine.active == 0, 20)


@pytest.mark.parametrize("sent", [b"GET /version HTTP/1.1\r\nHo", generate(False)[:-5], b""])
def test_the_end_of_file_in_a_request_ends_the_connection(
    client: httpx.Client, worker: Any, sent: bytes
) -> None:
    with socket.create_connection(("127.0.0.1", worker.port), timeout=20) as raw:
        raw.sendall(sent)
        raw.shutdown(socket.SHUT_WR)
        assert read_all(raw) == b""


def test_streams_of_http_1_0_have_no_chunks(client: httpx.Client, worker: Any) -> None:
    for headers in ((), (b"Connection: keep-alive",)):
        with socket.create_connection(("127.0.0.1", worker.port), timeout=20) as raw:
            raw.sendall(generate(True, b"1.0", *headers))
            answer = read_all(raw)
        head, _, body = answer.partition(b"\r\n\r\n")
        assert b"transfer-encoding" not in head and b"connection: close" in head
        assert body.startswith(b"data:") and body.endswith(b"\n\n")
        assert text_of(answer) == DEFAULT_ANSWER


def test_whole_answers_of_http_1_0_have_a_length(client: httpx.Client, worker: Any) -> None:
    for request in (generate(False, b"1.0"), b"GET /version HTTP/1.0\r\n\r\n"):
        with socket.create_connection(("127.0.0.1", worker.port), timeout=20) as raw:
            raw.sendall(request)
            head, _, body = read_all(raw).partition(b"\r\n\r\n")
        assert b"content-length: %d" % len(body) in head and b"connection: close" in head


def test_a_client_that_expects_it_is_told_to_go_on(client: httpx.Client, worker: Any) -> None:
    with socket.create_connection(("127.0.0.1", worker.port), timeout=20) as raw:
        raw.sendall(head(b"Expect: 100-continue", b"Connection: close") + b"\r\n")
        assert raw.recv(65536) == b"HTTP/1.1 100 Continue\r\n\r\n"
        raw.sendall(BODY)
        assert read_all(raw).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize(
    ("length", "status"), [(b"Content-Length: 99999999", b"413"), (b"Transfer-Encoding: x, chunked", b"501")]
)
def test_a_client_that_expects_a_refusal_is_not_told_to_go_on(
    client: httpx.Client, worker: Any, length: bytes, status: bytes
) -> None:
    with socket.create_connection(("127.0.0.1", worker.port), timeout=20) as raw:
        raw.sendall(head(b"Expect: 100-continue", length=length) + b"\r\n")
        assert read_all(raw).startswith(b"HTTP/1.1 " + status)


def test_trailers_are_no_headers(start_worker: Callable[..., Any], engine: FakeEngine) -> None:
    guarded = start_worker(worker=12, api_key=["right"])
    for trailer in (b"Authorization: Bearer right", b"X-Api-Key: right", b"X-Request-Id: mine"):
        key = b"Authorization: Bearer right" if trailer.startswith(b"X-R") else b"X: y"
        chunks = b"%x\r\n%b\r\n0\r\n%b\r\n\r\n" % (len(BODY), BODY, trailer)
        request = head(key, b"Connection: close", length=b"Transfer-Encoding: chunked") + b"\r\n" + chunks
        (answer,) = exchange(guarded, request)
        assert answer.startswith(b"200" if key.startswith(b"A") else b"401")
        assert b"mine" not in answer


def test_every_route_that_has_get_answers_head(client: httpx.Client, worker: Any) -> None:
    paths = ["/", "/docs", *(path for path, item in worker.app.openapi()["paths"].items() if "get" in item)]
    assert {"/health", "/healthz", "/readiness", "/liveness", "/v1/models", "/metrics"} <= set(paths)
    for path in paths:
        path = path.replace("{model}", "tiny")
        whole, only_head = client.get(path), client.head(path)
        assert only_head.status_code == whole.status_code and only_head.content == b"", path
        assert only_head.headers["content-type"] == whole.headers["content-type"]
    assert client.head("/generate").status_code == 405 and client.head("/v1/models/x").status_code == 404
    (first, second) = exchange(
        worker,
        b"HEAD /version HTTP/1.1\r\nHost: x\r\n\r\nHEAD /v1/models HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
    )
    assert first.endswith(b"\r\n\r\n") and second.endswith(b"\r\n\r\n")


def test_a_slash_at_the_end_of_a_path_makes_no_difference(client: httpx.Client) -> None:
    for path in ("/health", "/v1/models", "/v1/models/tiny", "/version", "/metrics"):
        response = client.get(path + "/")
        assert response.status_code == 200 and not response.history, path
    assert client.get("/v1/models/").json()["object"] == "list"
    body = {"inputs": "x", "parameters": {"max_new_tokens": 50}}
    assert client.post("/generate/", json=body).json()["generated_text"] == [DEFAULT_ANSWER]
    assert client.post("/v1/completions/", json={"prompt": "x"}).status_code == 200
    assert client.get("/nothing/").status_code == 404 and client.get("/version//").status_code == 404
