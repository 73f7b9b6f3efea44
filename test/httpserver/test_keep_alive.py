"""What keeps connections alive, and what ends them: comments in silent streams, idle connections, a draining server."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from typing import Any

import httpx
import openai
import pytest
from support.fake_engine import DEFAULT_ANSWER, FakeEngine
from support.sse import http_chunks

from lightllm.chat.talkers import RemoteServer
from lightllm.client import Server
from lightllm.config import ServerConfig
from lightllm.httpserver import responses
from lightllm.parsers.chat_format import ChatFormat
from lightllm.parsers.families import HERMES

COMMENT = b": keep-alive\n\n"
COMPLETION = {"prompt": "x", "max_tokens": 60, "stream": True}
CHAT = {"messages": [{"role": "user", "content": "x"}], "max_tokens": 60, "stream": True}
NATIVE = {"inputs": "x", "parameters": {"max_new_tokens": 60}}
LONGER_THAN_POOLS = {
    "Go and Traefik": 90,
    "Caddy": 120,
    ".NET": 120,
    "AWS load balancers": 60,
    "nginx": 60,
    "httpx": 5,
}
"""Seconds that these keep idle connections by default."""


@pytest.fixture(scope="module")
def commenting(start_worker: Callable[..., Any]) -> Any:
    return start_worker(worker=1, httpserver_workers=2, sse_keep_alive=0.05)


def go_on_later(engine: FakeEngine) -> None:
    """The engine makes no tokens for a while, in which comments are sent unless the machine is very busy."""
    engine.script.hold = True
    threading.Timer(0.5, lambda: setattr(engine.script, "hold", False)).start()


@pytest.mark.parametrize(
    ("path", "body"),
    [("/v1/completions", COMPLETION), ("/v1/chat/completions", CHAT), ("/generate_stream", NATIVE)],
)
def test_a_silent_stream_carries_comments(commenting: Any, engine: FakeEngine, path: str, body: dict) -> None:
    def go_on_after_two(frames: list[bytes]) -> None:
        engine.script.hold = len(frames) < 2

    engine.script.hold = True
    _, frames = http_chunks(commenting.url, path, body, go_on_after_two)
    assert frames[:2] == [COMMENT] * 2, "while the request waits and its prompt is computed"
    events = [frame for frame in frames if frame != COMMENT]
    assert all(event.startswith(b"data:") for event in events) and len(events) > 5


@pytest.mark.parametrize(
    ("path", "body", "commented", "number"),
    [
        ("/v1/completions", COMPLETION, True, 4),
        ("/", NATIVE | {"stream": True}, True, 5),
        ("/generate_stream", NATIVE, False, 6),
    ],
)
def test_by_default_streams_carry_comments_but_for_lightllms_own(
    start_worker: Callable[..., Any], engine: FakeEngine, monkeypatch: pytest.MonkeyPatch, path: str, body: dict, commented: bool, number: int
) -> None:  # fmt: skip
    assert ServerConfig().sse_keep_alive is None and 0 < responses.SILENT_SECONDS < 30
    monkeypatch.setattr(responses, "SILENT_SECONDS", 0.05)
    worker = start_worker(worker=number, httpserver_workers=7)
    if commented:
        engine.script.hold = True
    else:
        go_on_later(engine)
    _, frames = http_chunks(worker.url, path, body, lambda _: setattr(engine.script, "hold", False))
    assert (COMMENT in frames) is commented


def test_clients_take_no_notice_of_comments(commenting: Any, engine: FakeEngine) -> None:
    go_on_later(engine)
    with openai.OpenAI(base_url=commenting.url + "/v1", api_key="none", max_retries=0) as api:
        chunks = api.chat.completions.create(
            model="tiny", messages=[{"role": "user", "content": "x"}], stream=True
        )
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == DEFAULT_ANSWER
    go_on_later(engine)
    remote = RemoteServer(Server(commenting.url))
    pieces = remote.answer([{"role": "user", "content": "x"}])
    assert "".join(piece.text for piece in pieces) == DEFAULT_ANSWER


def test_comments_come_in_a_gap_between_tokens_too(commenting: Any, engine: FakeEngine) -> None:
    def hold_until_a_comment(frames: list[bytes]) -> None:
        engine.script.hold = COMMENT not in frames[first_event(frames) :]

    def first_event(frames: list[bytes]) -> int:
        return next((i for i, frame in enumerate(frames) if frame != COMMENT), 0)

    engine.script.pause = 0.1
    _, frames = http_chunks(commenting.url, "/v1/completions", COMPLETION, hold_until_a_comment)
    assert COMMENT in frames[first_event(frames) : -1]
    assert frames[-1] == b"data: [DONE]\n\n"


def test_tokens_that_a_parser_keeps_back_keep_no_connection_alive(
    start_worker: Callable[..., Any], engine: FakeEngine
) -> None:
    """A call that is known when its object has ended may be minutes long."""

    def end_after_a_comment(frames: list[bytes]) -> None:
        if COMMENT in frames:
            engine.script.tokens_a_round, engine.script.pause = 500, 0.0

    holding = start_worker(
        worker=8, httpserver_workers=9, sse_keep_alive=0.05, chat_format=ChatFormat(HERMES)
    )
    engine.script.answer, engine.script.pause = (
        '<tool_call>{"arguments": {"x": "' + "one " * 60 + '"}, "name": "f"}</tool_call>',
        0.02,
    )
    tools = [{"type": "function", "function": {"name": "f"}}]
    _, frames = http_chunks(
        holding.url,
        "/v1/chat/completions",
        CHAT | {"tools": tools, "tool_choice": "required", "max_tokens": 400},
        end_after_a_comment,
    )
    assert COMMENT in frames[1:-3] and b'"finish_reason":"tool_calls"' in b"".join(frames)


def test_no_comments_where_they_are_off_or_the_answer_is_whole(
    start_worker: Callable[..., Any], commenting: Any, engine: FakeEngine
) -> None:
    silent = start_worker(worker=0, httpserver_workers=2, sse_keep_alive=0.0)
    go_on_later(engine)
    _, frames = http_chunks(silent.url, "/v1/completions", COMPLETION)
    assert COMMENT not in frames
    go_on_later(engine)
    answer = httpx.post(commenting.url + "/v1/completions", json=COMPLETION | {"stream": False}, timeout=30)
    assert answer.json()["choices"][0]["text"] == DEFAULT_ANSWER


def test_idle_connections_are_kept_longer_than_clients_and_proxies_keep_theirs() -> None:
    assert ServerConfig().timeout_keep_alive > max(LONGER_THAN_POOLS.values())


def test_an_idle_connection_is_closed_after_its_time(
    start_worker: Callable[..., Any], engine: FakeEngine
) -> None:
    worker = start_worker(worker=3, timeout_keep_alive=1)
    with socket.create_connection(("127.0.0.1", worker.port), timeout=20) as raw:
        raw.sendall(b"GET /version HTTP/1.1\r\nHost: x\r\n\r\n")
        received = b""
        while data := raw.recv(65536):
            received += data
    assert received.startswith(b"HTTP/1.1 200 OK") and b"connection: close" not in received
