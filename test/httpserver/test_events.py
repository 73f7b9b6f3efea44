"""Server-sent events on the wire: one event a chunk, one line an event, for every reader's idea of a line."""

from __future__ import annotations

import json
import math
from typing import Any

import httpx
import pytest
from support.fake_engine import DEFAULT_ANSWER, FakeEngine
from support.sse import http_chunks

from lightllm.httpserver.rendering import LOWEST_LOGPROB, finite
from lightllm.tokenizer import Tokenizer

LINE_ENDS = "\u0085\u2028\u2029\x0b\x0c\x1c\x1d\x1e\r\n"
CHAT = {"messages": [{"role": "user", "content": "x"}], "max_tokens": 60}
STREAMS: dict[str, tuple[str, dict[str, Any]]] = {
    "chat": ("/v1/chat/completions", CHAT),
    "chat of several": ("/v1/chat/completions", CHAT | {"n": 3, "stream_options": {"include_usage": True}}),
    "chat with logprobs": ("/v1/chat/completions", CHAT | {"logprobs": True, "top_logprobs": 2}),
    "completion": ("/v1/completions", {"prompt": "x", "max_tokens": 60}),
    "echo": ("/v1/completions", {"prompt": "x", "max_tokens": 60, "echo": True, "logprobs": 1}),
    "native": ("/generate_stream", {"inputs": "x", "parameters": {"max_new_tokens": 60}}),
    "tgi": ("/", {"inputs": "x", "parameters": {"max_new_tokens": 60}}),
}  # fmt: skip


def body_of(name: str) -> tuple[str, dict[str, Any]]:
    path, body = STREAMS[name]
    return path, body | ({} if path == "/generate_stream" else {"stream": True})


def text_of(events: list[dict[str, Any]]) -> str:
    """All text of a stream with one answer."""
    parts = []
    for event in events:
        if "token" in event:
            parts.append(event["token"]["text"])
        for choice in event.get("choices", []):
            parts.append(choice["text"] if "text" in choice else choice["delta"].get("content", ""))
    return "".join(parts)


@pytest.mark.parametrize("name", STREAMS)
@pytest.mark.parametrize("error", ["", "cannot go on"])
@pytest.mark.parametrize("tokens_a_round", [1, 3, 100])
def test_each_event_is_a_chunk_of_its_own(
    client: httpx.Client, engine: FakeEngine, name: str, error: str, tokens_a_round: int
) -> None:
    engine.script.tokens_a_round = tokens_a_round
    engine.script.finish_error, engine.script.error_after = error, 3
    path, body = body_of(name)
    _, frames = http_chunks(str(client.base_url).rstrip("/"), path, body)
    for frame in frames:
        assert frame.startswith(b"data:") and frame.endswith(b"\n\n") and frame.count(b"\n") == 2
    assert (frames[-1] == b"data: [DONE]\n\n") == path.startswith("/v1")
    assert bool(error) == any(b"cannot go on" in frame for frame in frames)


@pytest.mark.parametrize("name", [name for name in STREAMS if name != "chat of several"])
def test_an_event_is_one_line_whatever_is_in_it(
    client: httpx.Client, engine: FakeEngine, tokenizer: Tokenizer, name: str
) -> None:
    engine.script.answer = answer = "".join(f"a{character}b" for character in LINE_ENDS)
    path, body = body_of(name)
    body = {key: answer if value == "x" else value for key, value in body.items()}
    with client.stream("POST", path, json=body) as response:
        lines = [line for line in response.iter_lines() if line]  # httpx splits where str.splitlines does
    assert all(line.startswith("data:") for line in lines)
    events = [json.loads(line[5:]) for line in lines if line != "data: [DONE]"]
    expected = answer * 2 if name == "echo" else answer
    assert text_of(events).removesuffix("</s>") == expected


@pytest.mark.parametrize("name", ["completion", "native", "tgi"])
def test_error_events_are_one_line_too(client: httpx.Client, engine: FakeEngine, name: str) -> None:
    engine.script.finish_error, engine.script.error_after = f"it said {LINE_ENDS}", 2
    path, body = body_of(name)
    with client.stream("POST", path, json=body) as response:
        lines = [line for line in response.iter_lines() if line]
    (error,) = [json.loads(line[5:])["error"] for line in lines if '"error":' in line]
    message = error["message"] if name == "completion" else error
    assert message == f"it said {LINE_ENDS}"


def test_text_that_needs_no_escape_is_sent_as_it_is(client: httpx.Client) -> None:
    raw = client.post("/v1/completions", json={"prompt": "x", "max_tokens": 60, "stream": True}).content
    assert "ö".encode() in raw and "🙂".encode() in raw
    assert DEFAULT_ANSWER.encode() not in raw, "it comes token by token"


def test_a_log_probability_of_json_is_never_made_of_nan() -> None:
    assert finite(-1.5) == -1.5 and finite(-math.inf) == finite(-1e9) == LOWEST_LOGPROB
    with pytest.raises(ValueError, match="NaN"):
        finite(math.nan)
