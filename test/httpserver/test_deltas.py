"""Parsers between text and answer: what a stream says piece by piece, the whole answer says at once."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.fake_engine import FakeEngine
from support.http_client import http_client
from support.sse import chunks
from support.tagged_parser import TaggedParser

from lightllm.httpserver.openai.rendering import Answer, Extras, OpenAIRenderer
from lightllm.httpserver.openai.shapes import CHAT, COMPLETION, Shape
from lightllm.httpserver.record import PromptRecord, RequestRecord
from lightllm.parsers.chat_format import ChatFormat
from lightllm.parsers.deltas import ContentParser, DeltaParser
from lightllm.parsers.reasoning import THINK
from lightllm.protocol.messages import Finish
from lightllm.sampling_params import SamplingParams

ANSWER = '<think>Half < whole</think>I look.<call now>{"zone": "UTC"}</call><call then>{}</call> Done <ca'
TOOL_CALLS = [
    {"id": "call_0", "type": "function", "function": {"name": "now", "arguments": '{"zone": "UTC"}'}},
    {"id": "call_1", "type": "function", "function": {"name": "then", "arguments": "{}"}},
]
pieces = st.lists(st.text(st.sampled_from("<>/ acehiklnt"), max_size=12), min_size=1, max_size=8)


def renderer(shape: Shape, parser: Callable[[], DeltaParser], **extras: Any) -> OpenAIRenderer:
    return OpenAIRenderer(Answer("id", 1, "model"), shape, Extras(**extras), parser)


def streamed(texts: list[str], tail: str, renderer: OpenAIRenderer) -> tuple[list[dict], RequestRecord]:
    """The events of an answer whose tokens have these texts and come one by one, and its record."""
    record = RequestRecord([PromptRecord([1, 2], SamplingParams())], stream=True)
    record.add_choices(7)
    (choice,) = record.choices
    events = []
    for number, text in enumerate(texts):
        choice.token_ids.append(number)
        choice.texts.append(text)
        choice.logprobs.append(-1.0)
        events += renderer.events(record)
    choice.end(Finish(7, "stop", 2, len(texts), 0), tail)
    events += renderer.events(record)
    return [json.loads(event.removeprefix(b"data: ")) for event in events], record


def joined_message(events: list[dict]) -> dict[str, Any]:
    """The message that a client makes of the deltas of a chat."""
    message: dict[str, Any] = {"role": "assistant", "content": "", "refusal": None}
    for event in events:
        delta = event["choices"][0]["delta"]
        for name in ("content", "reasoning_content", "reasoning"):
            if name in delta:
                message[name] = message.get(name, "") + delta[name]
        for call in delta.get("tool_calls", []):
            calls = message.setdefault("tool_calls", [])
            if "id" in call:
                calls.append({name: call[name] for name in ("id", "type", "function")})
            else:
                calls[call["index"]]["function"]["arguments"] += call["function"]["arguments"]
    if "tool_calls" in message:
        message["content"] = message["content"] or None
    return message


@pytest.mark.parametrize("parser", [ContentParser, TaggedParser])
@settings(max_examples=50, deadline=None)
@given(texts=pieces, tail=st.sampled_from(["", "<", "end"]), ids=st.booleans(), continuous=st.booleans())
def test_the_deltas_of_a_chat_make_the_whole_message(
    parser: Callable[[], DeltaParser], texts: list[str], tail: str, ids: bool, continuous: bool
) -> None:
    options = {"token_ids": ids, "usage": continuous, "continuous_usage": continuous}
    events, record = streamed(texts, tail, renderer(CHAT, parser, **options))
    whole = json.loads(renderer(CHAT, parser, **options).answer(record))["choices"][0]
    assert joined_message(events) == whole["message"]
    assert events[-1]["choices"][0]["finish_reason"] == whole["finish_reason"]
    if ids:
        assert [i for e in events for i in e["choices"][0].get("token_ids", [])] == whole["token_ids"]


@settings(max_examples=50, deadline=None)
@given(texts=pieces, tail=st.sampled_from(["", "end"]))
def test_the_chunks_of_a_completion_make_the_whole_text(texts: list[str], tail: str) -> None:
    events, record = streamed(texts, tail, renderer(COMPLETION, ContentParser))
    whole = json.loads(renderer(COMPLETION, ContentParser).answer(record))["choices"][0]
    assert "".join(event["choices"][0]["text"] for event in events) == whole["text"] == "".join(texts) + tail


@pytest.mark.parametrize("cuts", [[], [3, 9, 25, 31, 40, 60, 61, 62], list(range(1, len(ANSWER)))])
def test_reasoning_content_and_calls_are_told_apart_wherever_the_text_is_cut(cuts: list[int]) -> None:
    texts = [ANSWER[a:b] for a, b in zip([0, *cuts], [*cuts, len(ANSWER)], strict=True)]
    events, record = streamed(texts, "", renderer(CHAT, TaggedParser))
    message = joined_message(events)
    assert message["reasoning_content"] == "Half < whole" and message["content"] == "I look. Done <ca"
    assert message["tool_calls"] == TOOL_CALLS
    assert events[-1]["choices"][0]["finish_reason"] == "tool_calls"
    assert json.loads(renderer(CHAT, TaggedParser).answer(record))["choices"][0]["message"] == message


def test_log_probabilities_of_a_text_that_is_held_back_are_not(
    start_worker: Callable[..., Any], engine: FakeEngine
) -> None:
    worker = start_worker(worker=9, chat_format=ChatFormat(None, THINK, frozenset({"<think>", "</s>"})))
    engine.script.answer = "<think>one</think> two"
    body = {"messages": [{"role": "user", "content": "one"}], "stream": True, "logprobs": True}
    with http_client(worker.url) as client:
        events = chunks(client.post("/v1/chat/completions", json=body))
    (request,) = engine.added
    assert not request.params.skip_special_tokens, "the parser's markers are special tokens"
    message = joined_message(events)
    assert message["reasoning_content"] == "one" and message["content"] == "two"
    tokens = [
        entry
        for event in events
        if (logprobs := event["choices"][0]["logprobs"]) is not None
        for entry in logprobs["content"]
    ]
    assert "".join(entry["token"] for entry in tokens) == engine.script.answer + "</s>"
