"""Work that may take long is done beside the event loop: other clients are answered meanwhile."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from support.fake_engine import DEFAULT_ANSWER, FakeEngine

from lightllm.httpserver.logprobs import Logprobs
from lightllm.httpserver.openai.rendering import OpenAIRenderer
from lightllm.tokenizer import Tokenizer


def stall(monkeypatch: pytest.MonkeyPatch, owner: type, name: str) -> tuple[threading.Event, threading.Event]:
    """Makes a method wait: (set when it is called, to be set by the test)."""
    called, go_on = threading.Event(), threading.Event()
    original: Callable[..., Any] = getattr(owner, name)

    def stalled(*arguments: Any, **options: Any) -> Any:
        called.set()
        assert go_on.wait(10)
        return original(*arguments, **options)

    monkeypatch.setattr(owner, name, stalled)
    return called, go_on


def test_others_are_answered_while_many_short_prompts_are_tokenized(
    client: httpx.Client, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    called, go_on = stall(monkeypatch, Tokenizer, "encode")
    body = {"prompt": ["many short prompts make one long text"] * 100, "max_tokens": 40}
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(httpx.post, f"{client.base_url}/v1/completions", json=body, timeout=30)
        assert called.wait(10)
        assert client.get("/liveness", timeout=5).status_code == 200
        go_on.set()
        assert [choice["text"] for choice in answer.result().json()["choices"]] == [DEFAULT_ANSWER] * 100


@pytest.mark.parametrize(
    "body",
    [
        {"prompt": "x", "max_tokens": 400, "n": 16, "logprobs": 5},
        {"prompt": "a long prompt " * 25, "echo": True, "max_tokens": 0, "n": 4, "logprobs": 20},
    ],
)
def test_others_are_answered_while_a_large_answer_is_put_together(
    client: httpx.Client, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch, body: dict[str, Any]
) -> None:
    engine.script.endless, engine.script.tokens_a_round = True, 400
    called, go_on = stall(monkeypatch, OpenAIRenderer, "answer")
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(httpx.post, f"{client.base_url}/v1/completions", json=body, timeout=30)
        assert called.wait(10)
        assert client.get("/liveness", timeout=5).status_code == 200
        go_on.set()
        assert len(answer.result().json()["choices"]) == body["n"]


@pytest.mark.parametrize(
    "fields",
    [
        {"prompt": "a long prompt " * 40, "max_tokens": 4},
        {"prompt": ["a long prompt " * 25, "another prompt " * 25], "max_tokens": 4, "n": 4},
        {"prompt": "a long prompt " * 40, "max_tokens": 0, "n": 2},
    ],
)
def test_others_are_answered_while_a_long_echo_of_a_stream_is_put_together(
    client: httpx.Client, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch, fields: dict[str, Any]
) -> None:
    engine.script.tokens_a_round = 4
    body = fields | {"echo": True, "logprobs": 20, "seed": 1}
    url = f"{client.base_url}/v1/completions"
    whole = httpx.post(url, json=body, timeout=30).json()
    called, go_on = stall(monkeypatch, Logprobs, "prompt")
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(httpx.post, url, json=body | {"stream": True}, timeout=30)
        assert called.wait(10)
        assert client.get("/liveness", timeout=5).status_code == 200
        go_on.set()
        lines = answer.result().text.split("\n\n")
    choices = [c for line in lines[:-2] for c in json.loads(line.removeprefix("data: "))["choices"]]
    for expected in whole["choices"]:
        mine = [choice for choice in choices if choice["index"] == expected["index"]]
        assert "".join(choice["text"] for choice in mine) == expected["text"]
        parts = [choice["logprobs"] for choice in mine if choice["logprobs"]]
        assert {k: [x for part in parts for x in part[k]] for k in parts[0]} == expected["logprobs"]


def test_others_are_answered_while_the_text_of_an_echo_is_made_of_token_ids(
    client: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    called, go_on = stall(monkeypatch, Tokenizer, "decode")
    body = {"prompt": [[5] * 400] * 6, "echo": True, "max_tokens": 0}
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(httpx.post, f"{client.base_url}/v1/completions", json=body, timeout=30)
        assert called.wait(10)
        assert client.get("/liveness", timeout=5).status_code == 200
        go_on.set()
        assert answer.result().status_code == 200
