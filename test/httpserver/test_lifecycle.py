"""A request's life apart from the happy path: clients that leave or stall, time limits, aborts, starting and stopping."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import struct
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from support.fake_engine import DEFAULT_ANSWER, FakeEngine

from lightllm.httpserver.native.rendering import NativeRenderer
from lightllm.httpserver.record import RequestRecord
from lightllm.ipc.channels import EVERY_EPOCH, PushChannel, make_context
from lightllm.protocol.messages import TextDeltas


def open_stream(port: int, path: str = "/generate_stream", **parameters: Any) -> socket.socket:
    """A raw connection with a request sent; nothing has been read."""
    raw = socket.create_connection(("127.0.0.1", port), timeout=10)
    body = json.dumps({"inputs": "x", "parameters": parameters}).encode()
    raw.sendall(
        b"POST %b HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % (path.encode(), len(body)) + body
    )
    return raw


@pytest.mark.parametrize("path", ["/generate", "/generate_stream"])
def test_client_gone_aborts_the_request(
    client: httpx.Client, worker: Any, engine: FakeEngine, path: str
) -> None:
    engine.script.endless, engine.script.pause = True, 0.05
    raw = open_stream(worker.port, path, max_new_tokens=400, best_of=1)
    engine.wait_for(lambda: engine.active == 1)
    if path == "/generate_stream":
        assert raw.recv(15) == b"HTTP/1.1 200 OK"
    raw.close()
    engine.wait_for(lambda: engine.active == 0 and engine.aborted)
    assert engine.aborted[0].request_id == engine.added[0].choices[0].request_id
    engine.wait_for(lambda: worker.engine.active == 0)


def test_client_gone_while_waiting_aborts_every_choice(
    client: httpx.Client, worker: Any, engine: FakeEngine
) -> None:
    engine.script.hold, engine.script.accept = True, False
    raw = open_stream(worker.port, "/generate", best_of=3)
    engine.wait_for(lambda: engine.active == 3)
    raw.close()
    engine.wait_for(lambda: len(engine.aborted) == 3)


def test_slow_reader_is_cut_off_and_others_go_on(
    start_worker: Callable[..., Any], engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lightllm.httpserver.engine_client.MAX_PENDING_TOKENS", 50)
    worker = start_worker(worker=2)
    engine.ready(max_req_total_len=1_000_000)
    engine.script.endless, engine.script.tokens_a_round = True, 200
    raw = socket.socket()
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    raw.connect(("127.0.0.1", worker.port))
    body = b'{"inputs": "x", "parameters": {"max_new_tokens": 200000}}'
    raw.sendall(b"POST /generate_stream HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
    engine.wait_for(lambda: engine.aborted, 20)
    engine.wait_for(lambda: worker.engine.active == 0 and engine.active == 0)
    raw.settimeout(10)
    received = b""
    with contextlib.suppress(ConnectionResetError):
        while part := raw.recv(1 << 20):
            received += part
    raw.close()
    assert received.startswith(b"HTTP/1.1 200") and not received.endswith(b"0\r\n\r\n")
    engine.script.endless = False
    answer = httpx.post(f"{worker.url}/generate", json={"inputs": "x", "parameters": {"max_new_tokens": 50}})
    assert answer.json()["generated_text"] == [DEFAULT_ANSWER]


def test_time_limit(client: httpx.Client, engine: FakeEngine) -> None:
    engine.script.hold = True
    body = {"inputs": "x", "parameters": {"timeout": 0.05}}
    response = client.post("/generate", json=body)
    assert response.status_code == 408 and "time limit" in response.json()["message"]
    engine.wait_for(lambda: engine.aborted)
    assert engine.aborted[0].reason == "timeout"
    response = client.post("/generate_stream", json=body)
    assert response.status_code == 200 and b'"error"' in response.content


def test_time_limit_of_the_server(start_worker: Callable[..., Any], engine: FakeEngine) -> None:
    engine.script.hold = True
    worker = start_worker(worker=3, request_timeout=0.05)
    response = httpx.post(f"{worker.url}/v1/completions", json={"prompt": "x"})
    assert response.status_code == 408 and response.headers["x-should-retry"] == "false"


def test_abort_by_request_id_ends_all_choices(client: httpx.Client, engine: FakeEngine) -> None:
    engine.script.endless, engine.script.pause = True, 0.05
    body = {"inputs": "x", "parameters": {"best_of": 3, "max_new_tokens": 400}}
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(client.post, "/generate", json=body, headers={"x-request-id": "mine"})
        engine.wait_for(lambda: engine.active == 3)
        assert client.post("/abort_request", json={"request_id": "mine"}).json() == {"message": "Ok"}
        assert answer.result().json()["finish_reason"] == ["abort"] * 3
    assert client.post("/abort_request", json={"request_id": "mine"}).status_code == 200


def test_abort_by_the_id_in_the_answer(client: httpx.Client, engine: FakeEngine) -> None:
    engine.script.endless, engine.script.pause = True, 0.05
    with client.stream(
        "POST", "/v1/completions", json={"prompt": "x", "stream": True, "max_tokens": 400}
    ) as r:
        lines = r.iter_lines()
        answer_id = json.loads(next(lines).removeprefix("data: "))["id"]
        httpx.post(f"{client.base_url}/abort_request", json={"request_id": answer_id})
        events = [line for line in lines if line]
    assert events[-1] == "data: [DONE]"
    assert json.loads(events[-2].removeprefix("data: "))["choices"][0]["finish_reason"] == "abort"


def test_abort_reaches_the_worker_that_has_the_request(
    start_worker: Callable[..., Any], engine: FakeEngine
) -> None:
    engine.script.endless, engine.script.pause = True, 0.05
    first, second = (start_worker(worker=number, httpserver_workers=6) for number in (4, 5))
    body = {"inputs": "x", "parameters": {"max_new_tokens": 400}}
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(
            httpx.post, f"{first.url}/generate", json=body, headers={"x-request-id": "there"}
        )
        engine.wait_for(lambda: engine.active == 1)
        httpx.post(f"{second.url}/abort_request", json={"request_id": "there"})
        assert answer.result().json()["finish_reason"] == "abort"


def test_not_ready_is_503(client: httpx.Client, engine: FakeEngine) -> None:
    engine.ready(ready=0)
    for path, body in (("/generate", {"inputs": "x"}), ("/v1/completions", {"prompt": "x"})):
        response = client.post(path, json=body)
        assert response.status_code == 503 and response.headers["retry-after"] == "1"
    for path in ("/health", "/healthz", "/readiness"):
        response = client.get(path)
        assert response.status_code == 503 and "retry-after" in response.headers
    assert response.json() == {"status": "starting", "reason": "", "processes": []}
    assert client.get("/liveness").json() == {"status": "ok", "reason": "", "processes": []}
    engine.ready()
    assert client.get("/health").json() == {"message": "Ok", "status": "ok", "reason": "", "processes": []}
    assert client.head("/health").status_code == 200
    assert client.get("/readiness").json() == {"status": "ok", "reason": "", "processes": []}


def test_draining_refuses_new_requests_and_finishes_running_ones(
    start_worker: Callable[..., Any], engine: FakeEngine
) -> None:
    worker = start_worker(worker=7)
    engine.script.hold = True
    body = {"inputs": "x", "parameters": {"max_new_tokens": 50}}
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(httpx.post, f"{worker.url}/generate", json=body, timeout=30)
        engine.wait_for(lambda: engine.active == 1)
        worker.loop.call_soon_threadsafe(setattr, worker.view, "draining", True)
        engine.wait_for(lambda: worker.view.draining)
        response = httpx.post(f"{worker.url}/v1/completions", json={"prompt": "x"})
        assert response.status_code == 503 and response.json()["error"]["code"] == "server_stopping"
        readiness = httpx.get(f"{worker.url}/readiness")
        assert readiness.status_code == 503 and readiness.json()["status"] == "stopping"
        engine.script.hold = False
        assert running.result().json()["generated_text"] == [DEFAULT_ANSWER]


def test_streams_go_on_when_the_engine_has_been_restarted(client: httpx.Client, engine: FakeEngine) -> None:
    """What was accepted is sent again as restored, with its tokens; a client sees a pause, and no text twice."""
    engine.script.halt_at = 3
    one = {"inputs": "x", "parameters": {"max_new_tokens": 50}}
    two = {"inputs": "x", "parameters": {"max_new_tokens": 50, "best_of": 2, "seed": 7}}
    with ThreadPoolExecutor(1) as pool, client.stream("POST", "/generate_stream", json=one) as stream:
        whole = pool.submit(httpx.post, f"{client.base_url}/generate", json=two)
        engine.wait_for(lambda: engine.progress() == [3, 3, 3])
        lines = filter(None, stream.iter_lines())
        first = [next(lines) for _ in range(3)]
        engine.restart()
        engine.script.halt_at = None
        events = [json.loads(line.removeprefix("data:")) for line in [*first, *lines]]
        answer = whole.result()
    assert "".join(e["token"]["text"] for e in events if not e["token"]["special"]) == DEFAULT_ANSWER
    assert answer.json()["generated_text"] == [DEFAULT_ANSWER] * 2
    assert len(engine.added) == 4
    before = {added.choices[0].request_id: added for added in engine.added[:2]}
    for restored in engine.added[2:]:
        former = before.pop(restored.choices[0].request_id)
        assert restored.restored and not former.restored and restored.params == former.params
        assert [c.index for c in restored.choices] == [c.index for c in former.choices]
        assert [(len(c.output_ids), c.cached_tokens) for c in restored.choices] == [(3, 3)] * len(
            former.choices
        )


def test_a_request_that_no_engine_has_accepted_is_sent_again_as_a_new_one(
    client: httpx.Client, engine: FakeEngine
) -> None:
    engine.script.hold, engine.script.accept = True, False
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(
            client.post, "/generate", json={"inputs": "x", "parameters": {"max_new_tokens": 50}}
        )
        engine.wait_for(lambda: engine.added)
        engine.restart()
        engine.wait_for(lambda: len(engine.added) == 2)
        engine.script.hold = False
        assert answer.result().json()["generated_text"] == [DEFAULT_ANSWER]
    assert not engine.added[1].restored and not len(engine.added[1].choices[0].output_ids)


def test_an_abort_that_the_engine_did_not_live_to_obey_is_sent_again(
    client: httpx.Client, engine: FakeEngine
) -> None:
    engine.script.hold = engine.script.deaf = True
    with ThreadPoolExecutor(1) as pool:
        headers = {"x-request-id": "mine"}
        answer = pool.submit(client.post, "/generate", json={"inputs": "x"}, headers=headers)
        engine.wait_for(lambda: engine.added)
        client.post("/abort_request", json={"request_id": "mine"})
        engine.wait_for(lambda: engine.aborted)
        engine.script.deaf = False
        engine.restart()
        assert answer.result().json()["finish_reason"] == "abort"
    assert [abort.reason for abort in engine.aborted] == ["abort", "abort"]


def test_a_time_limit_is_kept_while_there_is_no_engine(client: httpx.Client, engine: FakeEngine) -> None:
    engine.script.hold = engine.script.deaf = True
    body = {"inputs": "x", "parameters": {"timeout": 0.05}}
    assert client.post("/generate", json=body).status_code == 408
    assert b"longer than its time limit" in client.post("/generate_stream", json=body).content


def test_malformed_message_does_not_stop_the_following_ones(client: httpx.Client, engine: FakeEngine) -> None:
    context = make_context()
    push = PushChannel(context, engine.runtime.http_results(0), EVERY_EPOCH)
    push.send(TextDeltas([1, 2], [3], ["x"], [0.0]))  # lists of different lengths
    push.send_bytes(b"\xc1 no message")
    push.close(linger_ms=1000)
    context.term()
    answer = client.post("/generate", json={"inputs": "x", "parameters": {"max_new_tokens": 50}})
    assert answer.json()["generated_text"] == [DEFAULT_ANSWER]


def test_unexpected_error_is_a_500_without_its_text(
    client: httpx.Client, worker: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("secret at 0x7f00")

    monkeypatch.setattr(type(worker.encoder), "fit", broken)
    response = client.post("/v1/completions", json={"prompt": "x"})
    assert response.status_code == 500
    error = response.json()["error"]
    assert "secret" not in response.text and error["type"] == "server_error"
    error_id = error["message"].split("error id ")[1].rstrip(")")
    assert error_id in caplog.text and "secret at" in caplog.text


def test_stream_interval_sends_the_first_token_at_once_and_then_groups(
    start_worker: Callable[..., Any], engine: FakeEngine
) -> None:
    worker = start_worker(worker=8, stream_interval=5)
    engine.script.endless, engine.script.halt_at = True, 1
    body = {"prompt": "x", "stream": True, "max_tokens": 21}
    texts = []
    with httpx.stream("POST", f"{worker.url}/v1/completions", json=body) as response:
        for line in response.iter_lines():
            if line.startswith("data: {"):
                texts.append(json.loads(line[6:])["choices"][0]["text"])
                engine.script.halt_at = 1 + 5 * len(texts)  # one by one, up to the next group
    assert "".join(texts).startswith(DEFAULT_ANSWER[:5])
    assert len(texts) == 1 + 4 + 1  # first token, four groups of five, the finish


def test_many_cancelled_streams_leave_nothing(client: httpx.Client, worker: Any, engine: FakeEngine) -> None:
    engine.script.endless, engine.script.pause = True, 0.001
    threads_before = threading.active_count()
    for number in range(60):
        raw = open_stream(worker.port, max_new_tokens=400)
        if number % 2:
            raw.recv(100)
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # close by reset
        raw.close()
    engine.wait_for(lambda: engine.active == 0 and worker.engine.active == 0)
    assert worker.engine._named == {}
    assert threading.active_count() <= threads_before + 1


@pytest.mark.parametrize("route", ["/generate", "/generate_stream"])
def test_a_client_that_leaves_with_requests_in_the_pipeline_is_noticed(
    worker: Any, engine: FakeEngine, caplog: pytest.LogCaptureFixture, route: str
) -> None:
    engine.script.hold = True
    body = b'{"inputs": "x", "parameters": {"max_new_tokens": 50}}'
    head = b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % (route.encode(), len(body))
    raw = socket.create_connection(("127.0.0.1", worker.port))
    raw.sendall((head + body) * 3)
    engine.wait_for(lambda: engine.active == 1)
    raw.close()
    engine.wait_for(lambda: engine.aborted and engine.active == 0 and worker.engine.active == 0)
    assert not caplog.text


def test_pipelined_requests_are_answered_in_order(worker: Any) -> None:
    raw = socket.create_connection(("127.0.0.1", worker.port))
    raw.settimeout(20)
    for number in range(30):
        body = b'{"inputs": "x", "parameters": {"max_new_tokens": %d}}' % (number % 3 + 1)
        close = b"Connection: close\r\n" if number == 29 else b""
        raw.sendall(
            b"POST /generate HTTP/1.1\r\nHost: x\r\n%bContent-Length: %d\r\n\r\n" % (close, len(body)) + body
        )
    received = b""
    while part := raw.recv(1 << 16):
        received += part
    raw.close()
    counts = [int(c) for c in re.findall(rb'"count_output_tokens":(\d)', received)]
    assert counts == [number % 3 + 1 for number in range(30)]


@pytest.mark.parametrize("sent", [b"", b"POST /generate HTTP/1.1\r\nHost: x\r\nContent-"])
def test_a_client_that_never_finishes_its_headers_is_cut_off(
    worker: Any, monkeypatch: pytest.MonkeyPatch, sent: bytes
) -> None:
    monkeypatch.setattr("lightllm.http.http_protocol.HEAD_SECONDS", 0.1)
    with socket.create_connection(("127.0.0.1", worker.port)) as raw:
        raw.settimeout(10)
        raw.sendall(sent)
        with contextlib.suppress(ConnectionResetError):
            assert raw.recv(1) == b""


def test_a_slow_request_outlives_the_time_for_headers(
    worker: Any, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lightllm.http.http_protocol.HEAD_SECONDS", 0.1)
    engine.script.pause = 0.05
    with httpx.Client(base_url=worker.url) as client:
        for _ in range(2):
            answer = client.post("/generate", json={"inputs": "x", "parameters": {"max_new_tokens": 50}})
            assert answer.json()["generated_text"] == [DEFAULT_ANSWER]


def test_a_finished_answer_that_nobody_reads_is_dropped(
    start_worker: Callable[..., Any], engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lightllm.http.http_protocol.WRITE_SECONDS", 0.2)
    worker = start_worker(worker=9)
    engine.ready(max_req_total_len=1_000_000)
    engine.script.endless, engine.script.tokens_a_round = True, 200
    raw = socket.socket()
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    raw.connect(("127.0.0.1", worker.port))
    body = b'{"inputs": "x", "parameters": {"max_new_tokens": 4000, "return_details": true}}'
    raw.sendall(b"POST /generate_stream HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
    engine.wait_for(lambda: worker.engine._named)
    engine.wait_for(lambda: not worker.engine._named)
    raw.close()


def test_a_defect_while_a_stream_is_written_ends_that_stream_alone(
    client: httpx.Client, worker: Any, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its later tokens are written where the message of all streams is taken in."""
    engine.script.endless, engine.script.pause = True, 0.02
    events = NativeRenderer.events

    def broken(renderer: NativeRenderer, record: RequestRecord) -> list[bytes]:
        if record.prompts[0].params.max_new_tokens == 400 and len(record.choices[0].token_ids) > 5:
            raise ZeroDivisionError
        return events(renderer, record)

    monkeypatch.setattr(NativeRenderer, "events", broken)
    with (
        open_stream(worker.port, max_new_tokens=400) as bad,
        open_stream(worker.port, max_new_tokens=60) as good,
    ):
        begun = text = b""
        with contextlib.suppress(ConnectionResetError):
            while data := bad.recv(1 << 16):
                begun += data
        while not text.endswith(b"0\r\n\r\n"):
            text += good.recv(1 << 16)
    assert 1 <= begun.count(b"data:") <= 5 and not begun.endswith(b"0\r\n\r\n")
    assert text.count(b"data:") == 60
    engine.wait_for(lambda: engine.active == 0)
