"""Hostile and malformed bodies: always a 4xx that says what is wrong, never a 500, and no 200 before the check."""

from __future__ import annotations

import codecs
import contextlib
import ctypes
import gzip
import json
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from support.fake_engine import FakeEngine

from lightllm.http.body import FREE_BYTES

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
    ("logit_bias", {"-1": 1}), ("logit_bias", {"1": 101}), ("logit_bias", {"1": float("nan")}), ("priority", 2**40),
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
    [
        (b"[1]," * 140_000, "131072 lists and objects"),
        (b"1," * 2_200_000, "2097152 values"),
        (b"{%b}," % b",".join(b'"%d" :1' % i for i in range(140_000)), "131072 fields"),
        (b"{%b}," % b",".join(b'"%d\\\\":1' % i for i in range(140_000)), "131072 fields"),
    ],
    ids=["lists", "values", "fields", "fields that end in a backslash"],
)
def test_bodies_of_too_many_values_are_refused_before_they_are_parsed(
    start_worker: Callable[..., Any], engine: FakeEngine, values: bytes, words: str
) -> None:
    worker = start_worker(worker=1, max_body_mb=64)
    body = b'{"prompt":[%b1]}' % values
    response = httpx.post(f"{worker.url}/v1/completions", content=body, timeout=5)
    assert response.status_code == 413 and words in message_of(response)


@pytest.mark.parametrize("text", [": " * 140_000, '{"a": 1}, ' * 100_000], ids=["colons", "JSON"])
def test_a_text_of_many_colons_is_a_text(start_worker: Callable[..., Any], text: str) -> None:
    worker = start_worker(worker=1, max_body_mb=64)
    response = httpx.post(f"{worker.url}/tokens", json={"text": text}, timeout=20)
    assert response.status_code in (200, 400) and "fields" not in response.text


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


def test_a_body_that_is_too_large_is_refused_before_it_has_come(worker: Any) -> None:
    with socket.create_connection(("127.0.0.1", worker.port), timeout=10) as raw:
        raw.sendall(b"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Length: 9999999\r\n\r\n{")
        assert raw.recv(12) == b"HTTP/1.1 413"  # although the rest never comes


def test_huge_headers_are_refused(client: httpx.Client) -> None:
    response = client.get("/liveness", headers={"x": "y" * 100_000})
    assert response.status_code == 431
    response = client.get("/liveness", headers={f"x-{i}": "y" for i in range(500)})
    assert response.status_code == 431


def test_long_texts_and_large_valid_bodies(client: httpx.Client) -> None:
    text = "word " * 30_000
    response = client.post("/generate", json={"inputs": text})
    assert response.status_code == 400
    assert "more than 512 tokens" in message_of(response)
    response = client.post("/generate", json={"inputs": text[:60_000]})
    assert response.status_code == 400
    assert "max_new_tokens 1 > 512" in message_of(response)


TEXT = '{"inputs": "Größe", "text": "Größe", "prompt": "Größe", "request_id": "Größe"}'


@pytest.mark.parametrize("path", ["/generate", "/v1/completions", "/tokens"])
@pytest.mark.parametrize("encoding", ["gzip", "br", "deflate, gzip", "x" * 1000])
def test_compressed_bodies_are_refused_by_the_header(client: httpx.Client, path: str, encoding: str) -> None:
    content = gzip.compress(TEXT.encode())
    response = client.post(path, content=content, headers={"Content-Encoding": encoding})
    assert response.status_code == 415
    assert "Content-Encoding" in message_of(response) and len(message_of(response)) < 200
    plain = client.post(path, content=TEXT.encode(), headers={"Content-Encoding": "identity"})
    assert plain.status_code == 200


@pytest.mark.parametrize("path", ["/generate", "/v1/completions", "/tokens"])
def test_a_byte_order_mark_of_utf_8_is_taken(client: httpx.Client, path: str) -> None:
    assert client.post(path, content=codecs.BOM_UTF8 + TEXT.encode()).status_code == 200
    assert client.post(path, content=codecs.BOM_UTF8 + b"{").status_code in (400, 422)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (TEXT.encode("utf-16"), "UTF-16"),
        (TEXT.encode("utf-16-le"), "UTF-16"),
        (TEXT.encode("utf-16-be"), "UTF-16"),
        (TEXT.encode("utf-32"), "UTF-32"),
        (TEXT.encode("latin-1"), "not UTF-8: byte 0xf6 at position 14"),
        (gzip.compress(TEXT.encode()), "compressed"),
        (b"\x28\xb5\x2f\xfd" + bytes(20), "compressed"),
    ],
    ids=["UTF-16", "UTF-16-LE", "UTF-16-BE", "UTF-32", "Latin-1", "gzip", "zstd"],
)
@pytest.mark.parametrize("path", ["/generate", "/v1/chat/completions"])
def test_bodies_that_are_not_utf_8_are_told_so(
    client: httpx.Client, path: str, content: bytes, reason: str
) -> None:
    response = client.post(path, content=content)
    assert response.status_code in (400, 422) and reason in message_of(response)


LARGE = 900_000


def half_sent(worker: Any, path: str, size: int = LARGE) -> socket.socket:
    """A connection with all but the last byte of a body sent."""
    body = b'{"inputs": 5, "prompt": 5, "text": 5, "x": "' + b"x" * size + b'"}'
    raw = socket.create_connection(("127.0.0.1", worker.port), timeout=20)
    raw.sendall(
        b"POST %b HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % (path.encode(), len(body)) + body[:-1]
    )
    return raw


def test_large_bodies_together_are_held_to_a_budget(
    start_worker: Callable[..., Any], engine: FakeEngine
) -> None:
    """With 1 MiB for one body, four together; what each has above 64 KiB counts."""
    worker = start_worker(worker=13)
    bodies = worker.state.bodies
    with contextlib.ExitStack() as stack:
        held = [stack.enter_context(half_sent(worker, "/generate")) for _ in range(5)]
        engine.wait_for(lambda: bodies.held == 5 * (LARGE + 45 - FREE_BYTES))
        for path in ("/generate", "/v1/completions", "/tokens"):
            response = httpx.post(f"{worker.url}{path}", content=b" " * LARGE)
            assert response.status_code == 503 and response.headers["retry-after"] == "2"
            assert "4 MiB together" in message_of(response)
            chunked = (b" " * 1000 for _ in range(LARGE // 1000))
            assert httpx.post(f"{worker.url}{path}", content=chunked).status_code == 503
        answer = httpx.post(f"{worker.url}/generate", json={"inputs": "x" * 50})
        assert answer.status_code == 200  # ordinary requests are let in
        for number, raw in enumerate(held):
            if number % 2:
                raw.close()
            else:
                raw.sendall(b"}")
                assert raw.recv(12) in (b"HTTP/1.1 422", b"HTTP/1.1 400")
        engine.wait_for(lambda: bodies.held == 0)
    for _ in range(6):  # refused, too large, malformed, taken: nothing of them stays counted
        httpx.post(f"{worker.url}/generate", content=b" " * LARGE)
        httpx.post(f"{worker.url}/generate", content=b" " * (2 << 20))
        assert (
            httpx.post(f"{worker.url}/v1/completions", json={"prompt": "x", "y": "y" * LARGE}).status_code
            == 200
        )
        engine.wait_for(lambda: bodies.held == 0)


@pytest.mark.parametrize("path", ["/generate_stream", "/generate", "/v1/chat/completions"])
def test_a_body_counts_no_longer_than_until_it_is_a_prompt(
    worker: Any, client: httpx.Client, engine: FakeEngine, path: str
) -> None:
    engine.script.hold = True
    messages = [{"role": "user", "content": "x"}]
    body = {"inputs": "x", "messages": messages, "unknown": "y" * LARGE}
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(client.post, path, json=body)
        engine.wait_for(lambda: engine.active == 1)
        engine.wait_for(lambda: worker.state.bodies.held == 0)
        engine.script.hold = False
        assert answer.result().status_code == 200


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="only glibc keeps freed blocks so")
def test_a_worker_gives_the_memory_of_large_bodies_back() -> None:
    code = """
from lightllm.http.body import give_back_large_blocks
give_back_large_blocks()
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096
before = resident()
for size in range(1, 31):  # each larger than the one before: the limit of glibc would follow
    block = bytearray(b"x") * (size << 20)
blocks = [bytearray(b"x") * (20 << 20) for _ in range(4)]
wall = bytearray(b"x") * 5000
block = blocks = None
print((resident() - before) >> 20)
"""
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(shown.stdout) <= 4
