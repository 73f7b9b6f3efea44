"""Requests whose matchers are being made: when they go to the router, and what ends them before."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from support.fake_engine import FakeEngine

from lightllm.constraints.check import check_threads
from lightllm.constraints.grammars import constraint_of, grammar_of
from lightllm.httpserver.constraint_tickets import ConstraintTickets
from lightllm.httpserver.ended import Ended
from lightllm.sampling_params import SamplingParams

SCHEMA = {"type": "object", "properties": {"größe": {"type": "integer"}}, "required": ["größe"]}


def ask(client: httpx.Client, **parameters: Any) -> httpx.Response:
    return client.post("/generate", json={"inputs": "x", "parameters": parameters})


def test_a_request_goes_to_the_router_when_its_matcher_is_made(
    client: httpx.Client, engine: FakeEngine
) -> None:
    """So that no round waits for it; others go on meanwhile."""
    engine.script.prepare = False
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(ask, client, guided_json=SCHEMA)
        engine.wait_for(lambda: engine.prepared)
        before = len(engine.added)
        assert ask(client).status_code == 200
        assert len(engine.added) == before + 1 and not engine.added[-1].params.constrained
        engine.script.prepare = True
        assert answer.result(60).status_code == 200
    (message,) = engine.prepared
    constraint = constraint_of(engine.added[-1].params)
    assert (message.name, message.text, message.prefix) == constraint
    assert message.grammar == grammar_of(constraint)


def test_a_matcher_is_asked_for_again_when_the_engine_was_started_again(
    client: httpx.Client, engine: FakeEngine
) -> None:
    engine.script.prepare = False
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(ask, client, guided_json=SCHEMA)
        engine.wait_for(lambda: engine.prepared)
        engine.restart()
        engine.wait_for(lambda: len(engine.prepared) > 1)
        engine.script.prepare = True
        assert answer.result(60).status_code == 200
    first, second = engine.prepared
    assert first == second


def test_a_backend_that_prepares_nothing_keeps_no_request(
    client: httpx.Client, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lightllm.httpserver.constraint_tickets.PATIENCE_SECONDS", 0.05)
    engine.script.prepare = False
    assert ask(client, guided_json=SCHEMA).status_code == 200
    engine.script.prepare = True


def test_the_same_constraint_of_several_prompts_is_prepared_once(
    client: httpx.Client, engine: FakeEngine
) -> None:
    body = {"prompt": ["x", "y", "z"], "guided_regex": "[ab]+", "n": 2}
    assert client.post("/v1/completions", json=body).status_code == 200
    assert [message.text for message in engine.prepared] == ["[ab]+"]


@pytest.fixture
def parked(engine: FakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Constrained requests wait for their matchers, as long as it takes."""
    monkeypatch.setattr("lightllm.httpserver.constraint_tickets.PATIENCE_SECONDS", 20.0)
    engine.script.prepare = False


def assert_nothing_was_sent(client: httpx.Client, engine: FakeEngine) -> None:
    """Not after the matcher is made either."""
    engine.script.prepare = True
    for _ in range(2):
        assert ask(client).status_code == 200
    assert [message.params.constrained for message in engine.added] == [False, False]


@pytest.mark.parametrize(("path", "n"), [("/generate", "best_of"), ("/v1/completions", "n")])
def test_an_abort_while_the_matcher_is_made(
    client: httpx.Client, engine: FakeEngine, parked: None, path: str, n: str
) -> None:
    fields: dict[str, Any] = {"guided_json": SCHEMA, n: 2}
    body = {"inputs": "x", "parameters": fields} if path == "/generate" else {"prompt": "x"} | fields
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(client.post, path, json=body, headers={"x-request-id": "mine"})
        engine.wait_for(lambda: engine.prepared)
        assert client.post("/abort_request", json={"request_id": "mine"}).json() == {"message": "Ok"}
        ended = answer.result(10)
    assert ended.status_code == 200 and ended.text.count('"abort"') == 2
    assert_nothing_was_sent(client, engine)


def test_an_abort_of_a_stream_while_the_matcher_is_made(
    client: httpx.Client, engine: FakeEngine, parked: None
) -> None:
    body = {"prompt": "x", "stream": True, "guided_json": SCHEMA}
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(client.post, "/v1/completions", json=body, headers={"x-request-id": "mine"})
        engine.wait_for(lambda: engine.prepared)
        client.post("/abort_request", json={"request_id": "mine"})
        ended = answer.result(10)
    assert '"abort"' in ended.text and ended.text.endswith("data: [DONE]\n\n")
    assert_nothing_was_sent(client, engine)


def test_a_client_that_leaves_while_the_matcher_is_made(
    client: httpx.Client, worker: Any, engine: FakeEngine, parked: None
) -> None:
    ended: list[Ended] = []
    worker.engine.watchers.append(ended.append)
    body = json.dumps({"inputs": "x", "parameters": {"guided_json": SCHEMA}}).encode()
    with socket.create_connection(("127.0.0.1", worker.port)) as connection:
        connection.sendall(
            b"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body
        )
        engine.wait_for(lambda: engine.prepared)
    engine.wait_for(lambda: ended, 10)
    worker.engine.watchers.clear()
    assert ended[0].outcome == "disconnected"
    assert_nothing_was_sent(client, engine)


def test_time_runs_while_the_matcher_is_made(client: httpx.Client, engine: FakeEngine, parked: None) -> None:
    with ThreadPoolExecutor(1) as pool:
        response = pool.submit(ask, client, guided_json=SCHEMA, timeout=0.05).result(10)
    assert response.status_code == 408 and "time limit" in response.json()["message"]
    assert_nothing_was_sent(client, engine)


@pytest.mark.parametrize("end", ["patience", "until"])
def test_a_request_does_not_wait_for_the_threads_that_check(
    end: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They may all be checking the constraints of others."""
    patience = 0.05 if end == "patience" else 30.0
    monkeypatch.setattr("lightllm.httpserver.constraint_tickets.PATIENCE_SECONDS", patience)
    sent: list[Any] = []
    free = threading.Event()

    async def prepare() -> None:
        until = asyncio.get_running_loop().create_future()
        if end == "until":
            until.set_result(None)
        tickets = ConstraintTickets(0, sent.append, 1)
        async with asyncio.timeout(10):
            await tickets.prepare([SamplingParams(regular_constraint="[ab]+")], until)

    busy = [check_threads().submit(free.wait, 15) for _ in range(2)]
    try:
        asyncio.run(prepare())
    finally:
        free.set()
    assert all(thread.result(10) for thread in busy) and sent == []
