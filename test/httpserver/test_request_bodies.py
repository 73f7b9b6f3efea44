"""Hostile and malformed bodies: always a 4xx that says what is wrong, never a 500, and no 200 before the check."""

from __future__ import annotations

import json
import socket
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from support.fake_engine import FakeEngine

ROUTES = (
    "/generate",
    "/generate_stream",
    "/v1/completions",
    "/v1/chat/completions",
    "/tokens",
    "/abort_request",
)

MALFORMED = {
    "empty": b"",
    "not JSON": b"hello",
    "cut off": b'{"inputs": "x"',
    "a list": b"[1]",
    "null": b"null",
    "invalid UTF-8": b'{"inputs": "\xff", "prompt": "\xff", "text": "\xff", "request_id": "\xff"}',
    "lone surrogate": b'{"inputs": "\\ud800", "prompt": "\\ud800", "text": "\\ud800", "request_id": "\\ud800"}',
    "nested lists": b'{"inputs":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "nested unknown field": b'{"inputs": "x", "prompt": "x", "y":'
    + b'{"a":' * 50_000
    + b"1"
    + b"}" * 50_000
    + b"}",
    "large and wrong": b'{"inputs": 5, "x": "' + b"y" * 100_000 + b'"}',
}


def message_of(response: httpx.Response) -> str:
    body = response.json()
    return str(body["error"]["message"] if "/v1/" in str(response.url) else body["message"])


def malformed_status(path: str) -> int:
    """OpenAI's clients know only 400 as a bad request."""
    return 400 if path.startswith("/v1/") else 422


@pytest.mark.parametrize("path", ROUTES)
@pytest.mark.parametrize("name", MALFORMED)
def test_malformed(client: httpx.Client, path: str, name: str) -> None:
    response = client.post(path, content=MALFORMED[name])
    assert response.status_code == malformed_status(path), response.text
    assert 0 < len(message_of(response)) < 400


NUMBERS: list[tuple[str, Any]] = [
    ("temperature", float("nan")), ("temperature", float("inf")), ("temperature", "warm"), ("temperature", "nan"),
    ("top_p", -0.1), ("top_k", 2**40), ("top_k", 1.5), ("top_k", 10**400), ("seed", -(2**63) - 1), ("seed", 2**63), ("min_p", 2),
    ("frequency_penalty", 1e9), ("presence_penalty", [1]), ("repetition_penalty", 0), ("ignore_eos", 2),
    ("stop_token_ids", [-1]), ("stop_token_ids", [2**31]), ("stop_token_ids", list(range(2000))), ("timeout", -1),
    ("logit_bias", {"x": 1}), ("logit_bias", {"1": 101}), ("logit_bias", {"1": float("nan")}), ("priority", 2**40),
]  # fmt: skip


@pytest.mark.parametrize("path", ROUTES[:4])
@pytest.mark.parametrize(("field", "value"), NUMBERS)
def test_numbers(client: httpx.Client, path: str, field: str, value: Any) -> None:
    body: dict[str, Any] = {"prompt": "x", "messages": [{"role": "user", "content": "x"}], "stream": True}
    body = {"inputs": "x", "parameters": {field: value}} if "generate" in path else body | {field: value}
    response = client.post(path, content=json.dumps(body).encode())
    assert response.status_code in (400, 422), response.text
    assert field in message_of(response)


@pytest.mark.parametrize("path", ROUTES[:4])
@pytest.mark.parametrize(
    "stop", [["x"] * 65, ["x"] * 10_000, "", [""], ["y" * 2000], 5, [None], [[-1]]], ids=lambda s: str(s)[:12]
)
def test_stops(client: httpx.Client, path: str, stop: Any) -> None:
    body: dict[str, Any] = {"prompt": "x", "messages": [{"role": "user", "content": "x"}], "stop": stop}
    if "generate" in path:
        body = {"inputs": "x", "parameters": {"stop_sequences": stop}}
    response = client.post(path, json=body)
    assert response.status_code in (400, 422), response.text
    assert "stop" in message_of(response)


@pytest.mark.parametrize(
    "prompt", [5, {}, True, [1, "a"], ["a", 1], [1.5], [[1], "a"], [[1.5]], [True], [-1]]
)
def test_prompts_of_wrong_types(client: httpx.Client, prompt: Any) -> None:
    response = client.post("/v1/completions", json={"prompt": prompt})
    assert response.status_code == 400 and "prompt" in message_of(response)
    response = client.post("/generate", json={"inputs": prompt})
    assert response.status_code == 422 and "inputs" in message_of(response)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"prompt": 5}, "prompt: Input should be a valid string or a valid array"),
        ({"prompt": [1, "a"]}, "prompt.1: Input should be a valid integer"),
        ({"prompt": ["a", 1]}, "prompt.1: Input should be a valid string"),
        ({"prompt": [[1], [-1]]}, "prompt.1.0: Input should be greater than or equal to 0"),
        ({"prompt": ["a"] * 3000}, "prompt: List should have at most 2048 items after validation, not 3000"),
        (
            {"prompt": "a", "stop": ["x"] * 65},
            "stop: List should have at most 64 items after validation, not 65",
        ),
        ({"prompt": "a", "stop": ["x", 5]}, "stop.1: Input should be a valid string"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_field_of_several_types_is_judged_by_the_one_that_was_meant(
    client: httpx.Client, body: dict[str, Any], message: str
) -> None:
    response = client.post("/v1/completions", json=body)
    assert response.status_code == 400 and message_of(response) == message
    assert response.json()["error"]["param"] == message.split(":")[0].split(".")[0]


@pytest.mark.parametrize(
    ("values", "words"),
    [(b"[1]," * 140_000, "131072 lists and objects"), (b"1," * 2_200_000, "2097152 values")],
)
def test_bodies_of_too_many_values_are_refused_before_they_are_parsed(
    start_worker: Callable[..., Any], engine: FakeEngine, values: bytes, words: str
) -> None:
    worker = start_worker(worker=1, max_body_mb=64)
    body = b'{"prompt":[%b1]}' % values
    response = httpx.post(f"{worker.url}/v1/completions", content=body, timeout=5)
    assert response.status_code == 413 and words in message_of(response)


@pytest.mark.parametrize("path", ROUTES)
def test_body_over_the_limit(client: httpx.Client, path: str) -> None:
    """1 MiB here, announced or in chunks of unannounced length."""
    body = b'{"inputs": "' + b"x" * (1 << 20) + b'"}'
    chunked = (body[i : i + 65536] for i in range(0, len(body), 65536))
    for content in (body, chunked):
        response = client.post(path, content=content)
        assert response.status_code == 413
        assert "1 MiB" in message_of(response)


def test_a_client_that_sends_all_before_it_reads_sees_that_its_body_is_too_large(worker: Any) -> None:
    """As Python's urllib does, with `Connection: close`. Larger than the buffers of both sides."""
    request = urllib.request.Request(
        f"{worker.url}/generate", b"x" * (40 << 20), {"Content-Type": "application/json"}
    )
    with pytest.raises(urllib.error.HTTPError) as error:
        urllib.request.urlopen(request, timeout=30)
    with error.value:
        assert error.value.code == 413 and b"1 MiB" in error.value.read()


def test_list_of_a_hundred_thousand_wrong_entries_is_answered_quickly(client: httpx.Client) -> None:
    body = json.dumps({"prompt": ["a"] + [1] * 100_000}).encode()
    response = client.post("/v1/completions", content=body, timeout=5)
    assert response.status_code == 400 and len(response.content) < 1000


def test_unknown_routes_and_methods_in_the_shape_of_their_api(client: httpx.Client) -> None:
    assert client.get("/nothing").status_code == 404
    assert "message" in client.get("/nothing").json()
    assert client.get("/v1/nothing").json()["error"]["code"] == "not_found"
    wrong_method = client.get("/generate")
    assert (wrong_method.status_code, wrong_method.headers["allow"]) == (405, "POST")
    assert client.post("/generate/", json={}, headers={"host": "evil"}).status_code == 404  # no redirect


def test_a_client_that_goes_on_sending_is_not_read_for_ever(
    worker: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lightllm.httpserver.body.DISCARD_SECONDS", 0.1)
    with socket.create_connection(("127.0.0.1", worker.port), timeout=10) as raw:
        raw.sendall(b"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Length: 9999999\r\n\r\n{")
        assert raw.recv(12) == b"HTTP/1.1 413"  # although the rest never comes


def test_huge_headers_are_refused(client: httpx.Client) -> None:
    response = client.get("/liveness", headers={"x": "y" * 100_000})
    assert response.status_code == 400
    response = client.get("/liveness", headers={f"x-{i}": "y" for i in range(500)})
    assert response.status_code == 400


def test_long_texts_and_large_valid_bodies(client: httpx.Client) -> None:
    text = "word " * 30_000
    response = client.post("/generate", json={"inputs": text})
    assert response.status_code == 400
    assert "more than 512 tokens" in message_of(response)
    response = client.post("/generate", json={"inputs": text[:60_000]})
    assert response.status_code == 400
    assert "max_new_tokens 1 > 512" in message_of(response)
