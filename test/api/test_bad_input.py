"""Bad input gets a clear 4xx that names the field and the limit, before any 200, and disturbs nobody."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

NATIVE = ("/generate", "/generate_stream")
OPENAI = ("/v1/completions", "/v1/chat/completions")


def native_body(**parameters: Any) -> dict[str, Any]:
    return {"inputs": "hello", "parameters": parameters}


def openai_body(path: str, **fields: Any) -> dict[str, Any]:
    prompt = (
        {"prompt": "hello"}
        if path == "/v1/completions"
        else {"messages": [{"role": "user", "content": "hello"}]}
    )
    return {"model": "demo", **prompt, **fields}


def post(client: httpx.Client, path: str, body: Any) -> httpx.Response:
    """Posts what json.dumps makes of the body, NaN and Infinity included, or raw bytes."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return client.post(path, content=data, headers={"Content-Type": "application/json"})


def message_of(response: httpx.Response) -> str:
    """The error message in the shape of the API."""
    body = response.json()
    return str(body["error"]["message"] if response.request.url.path.startswith("/v1") else body["message"])


@pytest.fixture(autouse=True)
def undisturbed(client: httpx.Client) -> Iterator[None]:
    """After every test the server answers a good request as before and holds nothing."""
    yield
    answer = post(client, "/generate", native_body(max_new_tokens=3, ignore_eos=True))
    assert answer.status_code == 200 and answer.json()["count_output_tokens"] == 3
    assert all(value == 0 for value in client.get("/token_load").json().values())


MALFORMED = {
    "not JSON": b"What is AI?",
    "empty": b"",
    "cut off": b'{"inputs": "hello", "prompt": "hello"',
    "a list": b"[1, 2, 3]",
    "null": b"null",
    "invalid UTF-8": b'{"inputs": "\xff\xfe", "prompt": "\xff\xfe", "model": "demo"}',
    "lone surrogate": b'{"inputs": "\\ud800", "prompt": "\\ud800", "model": "demo", "messages": "\\ud800"}',
    "a number without end": b'{"model":"demo","inputs":"x","prompt":"x","seed":' + b"9" * 5000 + b"}",
    "deeply nested": b'{"inputs":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "deeply nested unknown field": b'{"model":"demo","x":' + b'{"a":' * 50_000 + b"1" + b"}" * 50_000 + b"}",
}


@pytest.mark.parametrize("path", NATIVE + OPENAI)
@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_body(client: httpx.Client, path: str, name: str) -> None:
    response = post(client, path, MALFORMED[name])
    assert 400 <= response.status_code < 500, response.text
    assert message_of(response)


BAD_NUMBERS: list[tuple[str, Any]] = [
    ("max_new_tokens", 0), ("max_new_tokens", -1), ("max_new_tokens", 10**30), ("max_new_tokens", 1.5),
    ("max_new_tokens", "many"), ("temperature", -1), ("temperature", float("nan")), ("temperature", float("inf")),
    ("temperature", 1e300), ("temperature", "hot"), ("top_p", 0), ("top_p", -0.1), ("top_p", 1.1), ("top_p", float("nan")),
    ("top_k", -2), ("top_k", 2**40), ("frequency_penalty", float("nan")), ("frequency_penalty", 1e9),
    ("presence_penalty", float("-inf")), ("repetition_penalty", 0), ("repetition_penalty", float("nan")), ("min_p", 2),
    ("seed", -(2**70)), ("seed", 2**70), ("seed", "x"), ("ignore_eos", "perhaps"), ("stop_token_ids", [10**9]),
    ("stop_token_ids", [-1]), ("stop_token_ids", "1"), ("logit_bias", {"1": float("nan")}), ("logit_bias", {"99999999": 1}),
    ("logit_bias", {"-1": 1}), ("min_new_tokens", 5000), ("best_of", 0), ("best_of", 10**6), ("best_of", -3),
]  # fmt: skip
OPENAI_NAMES = {"max_new_tokens": "max_tokens", "min_new_tokens": "min_tokens", "best_of": "n"}


@pytest.mark.parametrize("path", NATIVE)
@pytest.mark.parametrize(("field", "value"), [*BAD_NUMBERS, ("top_k", 0), ("seed", -2)])
def test_bad_parameter_native(client: httpx.Client, path: str, field: str, value: Any) -> None:
    response = post(client, path, native_body(do_sample=True, **{field: value}))
    assert 400 <= response.status_code < 500, response.text
    assert field in message_of(response) or "stop" in message_of(response)


@pytest.mark.parametrize("path", OPENAI)
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("field", "value"), BAD_NUMBERS)
def test_bad_parameter_openai(client: httpx.Client, path: str, stream: bool, field: str, value: Any) -> None:
    name = OPENAI_NAMES.get(field, field)
    response = post(client, path, openai_body(path, stream=stream, **({"max_tokens": 16} | {name: value})))
    assert 400 <= response.status_code < 500, response.text
    assert response.json()["error"]["type"] == "invalid_request_error"
    assert (
        name in message_of(response)
        or field in message_of(response)
        or response.json()["error"]["param"] == name
    )


@pytest.mark.parametrize("inputs", ["", [], None, 5, {"a": 1}, [1, "a"], [10**9], [-1], [1.5], [[1]]])
@pytest.mark.parametrize("path", NATIVE)
def test_bad_inputs_native(client: httpx.Client, path: str, inputs: Any) -> None:
    response = post(client, path, {"inputs": inputs, "parameters": {"add_special_tokens": False}})
    assert 400 <= response.status_code < 500, response.text
    assert message_of(response)


@pytest.mark.parametrize(
    "prompt", ["", [], [[]], [""], None, 5, {"a": 1}, [1, "a"], [10**9], [-1], ["a", 1], [[1], "a"]]
)
@pytest.mark.parametrize("stream", [False, True])
def test_bad_prompt_completions(client: httpx.Client, prompt: Any, stream: bool) -> None:
    body = {"model": "demo", "prompt": prompt, "stream": stream, "add_special_tokens": False}
    response = post(client, "/v1/completions", body)
    assert 400 <= response.status_code < 500, response.text
    assert message_of(response)


@pytest.mark.parametrize(
    "messages", [[], None, "hello", [1], [{}], [{"role": "user"}], [{"role": "user", "content": 5}], [{"content": "hello"}],
                 [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://127.0.0.1/x.png"}}]}]],
)  # fmt: skip
def test_bad_messages(client: httpx.Client, messages: Any) -> None:
    response = post(client, "/v1/chat/completions", {"model": "demo", "messages": messages})
    assert 400 <= response.status_code < 500, response.text
    assert message_of(response)


@pytest.mark.parametrize("path", NATIVE + OPENAI)
def test_prompt_longer_than_the_limit_names_the_limit(client: httpx.Client, path: str) -> None:
    text = "hello world " * 20_000
    body = (
        {"inputs": text, "parameters": {}} if path in NATIVE else openai_body(path, stream=True, prompt=text)
    )
    if path == "/v1/chat/completions":
        body["messages"] = [{"role": "user", "content": text}]
    response = post(client, path, body)
    assert response.status_code == 400
    assert "2048" in message_of(response)


@pytest.mark.parametrize("path", NATIVE + OPENAI)
def test_prompt_plus_max_new_tokens_over_the_limit(client: httpx.Client, path: str) -> None:
    """On LightLLM's own API the output is what fits."""
    if path in NATIVE:
        response = post(client, path, {"inputs": [5] * 2046, "parameters": {"max_new_tokens": 2048}})
        assert response.status_code == 200 and b'"count_output_tokens": 3' not in response.content
        response = post(client, path, {"inputs": [5] * 2048, "parameters": {"max_new_tokens": 2048}})
    else:
        response = post(client, path, openai_body(path, max_tokens=2048, stream=True))
    assert response.status_code == 400
    assert "2048" in message_of(response)


@pytest.mark.parametrize("path", NATIVE + OPENAI)
@pytest.mark.parametrize("stop", [["x" * 5] * 10_000, [""], "", ["y" * 100_000], 5, [None], [[-1]]])
def test_bad_stop(client: httpx.Client, path: str, stop: Any) -> None:
    body = native_body(stop_sequences=stop) if path in NATIVE else openai_body(path, stop=stop, stream=True)
    response = post(client, path, body)
    assert 400 <= response.status_code < 500, response.text
    assert "stop" in message_of(response)


@pytest.mark.parametrize("path", NATIVE + OPENAI)
def test_body_over_the_limit_is_413(client: httpx.Client, path: str) -> None:
    response = post(client, path, b'{"inputs": "' + b"x" * (9 << 20) + b'"}')
    assert response.status_code == 413
    assert "8" in message_of(response)


def test_chunked_body_over_the_limit_is_413(client: httpx.Client) -> None:
    def chunks() -> Iterator[bytes]:
        yield b'{"inputs": "'
        for _ in range(9):
            yield b"x" * (1 << 20)

    response = client.post("/generate", content=chunks(), headers={"Content-Type": "application/json"})
    assert response.status_code == 413


@pytest.mark.parametrize("path", OPENAI)
def test_unknown_model_is_404(client: httpx.Client, path: str) -> None:
    response = post(client, path, openai_body(path, stream=True) | {"model": "gpt-17"})
    assert response.status_code == 404
    assert response.json()["error"]["code"] == "model_not_found"
    assert "gpt-17" in message_of(response) and "demo" in message_of(response)


def test_unknown_route_and_method(client: httpx.Client) -> None:
    assert client.get("/v1/nothing").status_code == 404
    assert client.get("/generate").status_code == 405


def test_bad_requests_leave_running_streams_alone(client: httpx.Client) -> None:
    """Two hundred bad requests while streams run: every stream gets all of its tokens."""

    def good(number: int) -> int:
        return int(
            post(client, "/generate", native_body(max_new_tokens=200, ignore_eos=True)).json()[
                "count_output_tokens"
            ]
        )

    def bad(number: int) -> int:
        path = (NATIVE + OPENAI)[number % 4]
        return post(client, path, list(MALFORMED.values())[number % 7]).status_code

    with ThreadPoolExecutor(16) as pool:
        counts = [pool.submit(good, number) for number in range(8)]
        statuses = list(pool.map(bad, range(200)))
        assert [count.result() for count in counts] == [200] * 8
    assert all(400 <= status < 500 for status in statuses)
