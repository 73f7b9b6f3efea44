"""A constraint that becomes too complex in the middle of an output: the backend finds out, and its client is told; nobody
else notices."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from support.http_client import http_client
from support.server import LightLLMServer

GRAMMAR = 'start: s\ns: s s s | s s | "a" | "b"'
"""Every text of it can be read in many ways."""

LONG: dict[str, object] = {"max_new_tokens": 200, "min_new_tokens": 190}


@pytest.fixture(scope="module")
def server() -> Iterator[LightLLMServer]:
    with LightLLMServer(["--model_name", "demo", "--max_total_token_num", "4000"]) as server:
        yield server


@pytest.fixture(scope="module")
def client(server: LightLLMServer) -> Iterator[httpx.Client]:
    with http_client(server.url, timeout=60) as client:
        yield client


def native(client: httpx.Client, route: str = "/generate", **parameters: object) -> httpx.Response:
    return client.post(route, json={"inputs": "count", "parameters": LONG | parameters})


def openai(client: httpx.Client, **fields: object) -> httpx.Response:
    return client.post(
        "/v1/completions",
        json={"model": "demo", "prompt": "count", "max_tokens": 200, "min_tokens": 190, **fields},
    )


def check_idle(client: httpx.Client) -> None:
    end = time.monotonic() + 5
    while client.get("/token_load").json()["current_load"] > 0:
        assert time.monotonic() < end, "slots are held for ever"
        time.sleep(0.02)


def test_the_answer_is_400_and_says_why(client: httpx.Client) -> None:
    response = native(client, guided_grammar=GRAMMAR)
    assert response.status_code == 400 and "items; max is" in response.json()["message"]
    for n in (1, 3):
        response = openai(client, guided_grammar=GRAMMAR, n=n)
        error = response.json()["error"]
        assert response.status_code == 400 and error["type"] == "invalid_request_error"
        assert "items; max is" in error["message"]
    check_idle(client)


def test_a_stream_says_so_at_its_end_or_never_begins(client: httpx.Client) -> None:
    response = native(client, "/generate_stream", guided_grammar=GRAMMAR)
    assert response.status_code in (200, 400) and "items; max is" in response.text
    if response.status_code == 200:
        assert "error" in json.loads(response.text.strip().rpartition("data:")[2])
    response = openai(client, guided_grammar=GRAMMAR, stream=True)
    assert response.status_code in (200, 400) and "invalid_request_error" in response.text
    check_idle(client)


def test_others_go_on_as_if_nothing_had_been(client: httpx.Client, server: LightLLMServer) -> None:
    def ask(number: int) -> str:
        if number % 2:
            return native(client, guided_grammar=GRAMMAR).text
        answer = native(
            client, do_sample=False, ignore_eos=True, max_new_tokens=30 + number, min_new_tokens=1
        )
        assert answer.status_code == 200
        return str(answer.json()["generated_text"])

    alone = [ask(number) for number in range(8)]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(ask, range(8))) == alone
    check_idle(client)
    assert "failed" not in server.log and "Traceback" not in server.log
