"""Anthropic's /v1/messages and /v1/messages/count_tokens, over HTTP before a scripted engine."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.agents import tokenizer_with, tokenizing
from support.anthropic_events import message_of, read_events
from support.chat_templates import QWEN
from support.fake_engine import DEFAULT_ANSWER, FakeEngine
from support.http_client import http_client
from support.sse import http_chunks
from support.tagged_parser import TaggedParser
from support.tool_outputs import FUNCTIONS

from lightllm.httpserver.anthropic.models import CountTokensRequest
from lightllm.httpserver.anthropic.reading import as_chat
from lightllm.httpserver.anthropic.rendering import PING, MessagesRenderer
from lightllm.httpserver.record import PromptRecord, RequestRecord
from lightllm.parsers.chat_format import ChatFormat
from lightllm.parsers.families import HERMES
from lightllm.parsers.reasoning import THINK
from lightllm.protocol.messages import Finish, Refused
from lightllm.sampling_params import SamplingParams
from lightllm.tokenizer import Tokenizer

MESSAGES: Any = [{"role": "user", "content": "What is AI?"}]
TOOLS = [
    {"name": name, "description": "of one", "input_schema": schema} for name, schema in FUNCTIONS.items()
]
TEMPLATE = QWEN + "{% if enable_thinking %}<think>\n{% endif %}{{ reasoning_effort }}"
CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Zürich 🙂"}}\n</tool_call>'
pieces = st.lists(st.text(st.sampled_from("<>/ acehiklnt"), max_size=12), min_size=1, max_size=8)


@pytest.fixture
def ask(client: httpx.Client) -> Callable[..., httpx.Response]:
    def ask(path: str = "/v1/messages?beta=true", **fields: Any) -> httpx.Response:
        body = {"model": "claude", "messages": MESSAGES, "max_tokens": 100} | fields
        return client.post(path, json={name: value for name, value in body.items() if value is not None})

    return ask


@pytest.fixture(scope="module")
def with_tools(start_worker: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A worker whose model thinks and calls."""
    worker = start_worker(worker=13, chat_format=ChatFormat(HERMES, THINK))
    template = TEMPLATE
    with (
        tokenizer_with(template, tmp_path_factory.mktemp("qwen")) as tokenizer,
        tokenizing(worker, tokenizer),
    ):
        yield worker


@pytest.fixture
def agent(with_tools: Any, engine: FakeEngine) -> Iterator[Callable[..., httpx.Response]]:
    with http_client(with_tools.url, timeout=60) as client:

        def ask(answer: str, path: str = "/v1/messages", **fields: Any) -> httpx.Response:
            engine.script.answer = answer
            engine.ready(max_req_total_len=2048, slots_total=2048)
            body = {"messages": MESSAGES, "tools": TOOLS, "max_tokens": 300} | fields
            return client.post(path, json=body)

        yield ask


def prompt_of(engine: FakeEngine, tokenizer: Tokenizer) -> str:
    return tokenizer.decode(engine.added[-1].prompt_ids.tolist(), skip_special_tokens=False)


def test_a_message(ask: Callable[..., httpx.Response], engine: FakeEngine, tokenizer: Tokenizer) -> None:
    response = ask(temperature=0.5, top_k=7, min_p=0.25)
    assert response.status_code == 200, response.text
    message = response.json()
    assert message.pop("id").startswith("msg_")
    usage = message.pop("usage")
    assert message == {
        "type": "message", "role": "assistant", "model": "claude", "content": [{"type": "text", "text": DEFAULT_ANSWER}],
        "stop_reason": "end_turn", "stop_sequence": None,
    }  # fmt: skip
    assert prompt_of(engine, tokenizer) == "<s><|user|>What is AI?</s><|assistant|>"
    assert usage["input_tokens"] + usage["cache_read_input_tokens"] == len(engine.added[0].prompt_ids)
    assert usage["cache_read_input_tokens"] == 3 and usage["cache_creation_input_tokens"] == 0
    assert usage["output_tokens"] > 5
    params = engine.added[0].params
    assert params.max_new_tokens == 100 and params.do_sample
    assert (params.temperature, params.top_k, params.min_p) == (0.5, 7, 0.25)


def test_a_stream_makes_the_same_message(ask: Callable[..., httpx.Response], engine: FakeEngine) -> None:
    events = read_events(ask(stream=True).content)
    usage = events[0]["message"]["usage"]
    assert usage["input_tokens"] == len(engine.added[0].prompt_ids)
    assert sum(event["type"] == "content_block_delta" for event in events) > 5
    streamed, whole = message_of(events), ask().json()
    assert streamed.pop("id") != whole.pop("id")
    assert streamed == whole


def test_the_first_event_comes_before_the_first_token_and_pings_follow(
    start_worker: Callable[..., Any], engine: FakeEngine
) -> None:
    worker = start_worker(worker=1, httpserver_workers=2, sse_keep_alive=0.05)
    engine.script.hold = True

    def go_on_after_two_pings(frames: list[bytes]) -> None:
        engine.script.hold = frames.count(PING) < 2

    body = {"messages": MESSAGES, "max_tokens": 100, "stream": True}
    _, frames = http_chunks(worker.url, "/v1/messages", body, go_on_after_two_pings)
    assert b"message_start" in frames[0] and frames[1:3] == [PING, PING]
    assert message_of(read_events(b"".join(frames)))["content"][0]["text"] == DEFAULT_ANSWER


@pytest.mark.parametrize("stream", [False, True])
def test_the_stop_sequence_that_was_found_is_told(
    ask: Callable[..., httpx.Response], engine: FakeEngine, stream: bool
) -> None:
    engine.script.stop = "END"
    response = ask(stop_sequences=["x", "END"], stream=stream)
    message = message_of(read_events(response.content)) if stream else response.json()
    assert message["stop_reason"] == "stop_sequence" and message["stop_sequence"] == "END"
    assert engine.added[0].params.stop_sequences == ["x", "END"]


def test_an_answer_that_is_cut_off(ask: Callable[..., httpx.Response], engine: FakeEngine) -> None:
    engine.script.endless = True
    message = ask(max_tokens=4).json()
    assert message["stop_reason"] == "max_tokens" and message["usage"]["output_tokens"] == 4


def test_system_texts_make_one_message_without_the_billing_header(
    ask: Callable[..., httpx.Response], engine: FakeEngine, tokenizer: Tokenizer
) -> None:
    prompts = []
    for number in range(2):
        header = f"x-anthropic-billing-header: cc_version=2.1.{number}; cch={number};"
        system = [{"type": "text", "text": text} for text in (header, "one", "two")]
        assert ask(system=system).status_code == 200
        prompts.append(prompt_of(engine, tokenizer))
        assert ask(system=f"{header}\none\ntwo").status_code == 200
        prompts.append(prompt_of(engine, tokenizer))
    assert set(prompts) == {"<s><|system|>one\ntwo</s><|user|>What is AI?</s><|assistant|>"}


def test_an_answer_that_has_begun_is_continued(
    ask: Callable[..., httpx.Response], engine: FakeEngine, tokenizer: Tokenizer
) -> None:
    assert ask(messages=[*MESSAGES, {"role": "assistant", "content": "AI is"}]).status_code == 200
    assert prompt_of(engine, tokenizer).endswith("<|assistant|>AI is")


def test_a_turn_with_results_becomes_tool_messages_and_what_else_it_holds() -> None:
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AAAA"}}
    messages = [
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": [
            {"type": "thinking", "thinking": "of", "signature": "any"}, {"type": "redacted_thinking", "data": "x"},
            {"type": "text", "text": "two"}, {"type": "tool_use", "id": "t1", "name": "f", "input": {"a": "ö"}},
            {"type": "tool_use", "id": "t2", "name": "g", "input": {}},
        ]},
        {"role": "user", "content": [
            {"type": "text", "text": "and"}, image,
            {"type": "tool_result", "tool_use_id": "t1", "content": "5"},
            {"type": "tool_result", "tool_use_id": "t2", "content": [{"type": "text", "text": "no"}], "is_error": True},
        ]},
    ]  # fmt: skip
    chat = as_chat(CountTokensRequest.model_validate({"messages": messages}))
    first, assistant, *results, user = chat.messages
    assert first.content == "one" and assistant.reasoning_content == "of"
    assert [part.text for part in assistant.content] == ["two"]
    calls = [(call.id, call.function.name, call.function.arguments) for call in assistant.tool_calls]
    assert calls == [("t1", "f", '{"a": "ö"}'), ("t2", "g", "{}")]
    assert [(m.role, m.tool_call_id, [part.text for part in m.content]) for m in results] == [
        ("tool", "t1", ["5"]), ("tool", "t2", ["Error:", "no"]),
    ]  # fmt: skip
    assert [part.type for part in user.content] == ["text", "image_url"]
    assert user.content[1].image_url == "data:image/png;base64,AAAA"
    assert not chat.continue_final_message


def test_reasoning_and_a_call(agent: Callable[..., httpx.Response], engine: FakeEngine) -> None:
    fields = {"thinking": {"type": "enabled", "budget_tokens": 1024}}
    answer = f"of one\n</think>\n\nI look.\n{CALL}"
    whole = agent(answer, **fields).json()
    thinking, text, call = whole["content"]
    assert thinking["thinking"] == "of one" and thinking["signature"] and text["text"] == "I look."
    assert call == {
        "type": "tool_use",
        "id": call["id"],
        "name": "get_weather",
        "input": {"city": "Zürich 🙂"},
    }
    assert whole["stop_reason"] == "tool_use"
    assert 2 <= whole["usage"]["output_tokens_details"]["thinking_tokens"] < whole["usage"]["output_tokens"]
    streamed = message_of(read_events(agent(answer, stream=True, **fields).content))
    for message in (whole, streamed):
        del message["id"], message["content"][0]["signature"], message["content"][2]["id"]
    assert streamed == whole


def test_arguments_that_are_cut_off_are_read_as_far_as_they_go(
    agent: Callable[..., httpx.Response], engine: FakeEngine
) -> None:
    engine.script.eos = False
    answer = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "one", "days": [1, 2, '
    whole = agent(answer).json()
    (call,) = whole["content"]
    assert call["input"] == {"city": "one", "days": [1, 2]}
    events = read_events(agent(answer, stream=True).content)
    pieces = [event["delta"]["partial_json"] for event in events if event["type"] == "content_block_delta"]
    assert "".join(pieces).rstrip() == '{"city": "one", "days": [1, 2,'


def test_who_does_not_ask_for_thinking_is_shown_none(
    agent: Callable[..., httpx.Response], with_tools: Any, engine: FakeEngine
) -> None:
    tokenizer = with_tools.encoder.tokenizer
    for fields in ({}, {"thinking": {"type": "disabled"}}):
        assert [block["type"] for block in agent("<think>of</think>one", **fields).json()["content"]] == [
            "text"
        ]
        assert not prompt_of(engine, tokenizer).endswith("<think>\n")
    hidden = {"thinking": {"type": "adaptive", "display": "omitted"}, "output_config": {"effort": "max"}}
    assert [block["type"] for block in agent("of</think>one", **hidden).json()["content"]] == ["text"]
    assert prompt_of(engine, tokenizer).endswith("<think>\nhigh")


@pytest.mark.parametrize(
    ("choice", "names"),
    [({"type": "any"}, ["get_weather", "get_time"]), ({"type": "tool", "name": "get_time"}, ["get_time"])],
)
def test_a_demanded_call_is_constrained(
    agent: Callable[..., httpx.Response], engine: FakeEngine, choice: dict, names: list[str]
) -> None:
    assert agent(CALL, tool_choice=choice | {"disable_parallel_tool_use": True}).status_code == 200
    grammar = engine.added[-1].params.call_grammar
    assert grammar and all((name in grammar) == (name in names) for name in ("get_weather", "get_time"))
    assert "next{" not in grammar
    for several in None, False:
        assert agent(CALL, tool_choice=choice | {"disable_parallel_tool_use": several}).status_code == 200
        one = choice["type"] == "tool" and several is None
        assert ("next{" in engine.added[-1].params.call_grammar) is not one


def test_without_a_choice_a_call_is_text(agent: Callable[..., httpx.Response]) -> None:
    assert agent(CALL, tool_choice={"type": "none"}).json()["content"] == [{"type": "text", "text": CALL}]


def test_a_schema_for_the_output(ask: Callable[..., httpx.Response], engine: FakeEngine) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    form = {"type": "json_schema", "schema": schema}
    for fields in ({"output_config": {"format": form}}, {"output_format": form}):
        assert ask(**fields).status_code == 200
        assert json.loads(engine.added[-1].params.guided_json) == schema


def test_tokens_are_counted_with_tools_and_all_that_the_template_adds(
    agent: Callable[..., httpx.Response], engine: FakeEngine
) -> None:
    assert agent("one", system="two").status_code == 200
    expected = len(engine.added[-1].prompt_ids)
    path = "/v1/messages/count_tokens"
    assert agent("", path, system="two").json() == {"input_tokens": expected}
    assert agent("", path, system="two", tools=[]).json()["input_tokens"] < expected - 20
    long = [{"role": "user", "content": "one two " * 5000}]
    assert agent("", path, messages=long).json()["input_tokens"] > 10_000, "more than the model's context"


def test_errors_have_anthropics_shape(
    ask: Callable[..., httpx.Response], engine: FakeEngine, client: httpx.Client
) -> None:
    def told(response: httpx.Response) -> tuple[int, str, str]:
        body = response.json()
        assert body.keys() == {"type", "error"} and body["type"] == "error"
        assert response.headers["x-request-id"] == response.headers["request-id"]
        return response.status_code, body["error"]["type"], body["error"]["message"]

    invalid = (400, "invalid_request_error")
    status, kind, text = told(ask(max_tokens=None))
    assert (status, kind) == invalid and "max_tokens" in text
    tool = {"type": "web_search_20250305", "name": "web_search"}
    for fields, named in [
        ({"tools": [tool]}, "web_search_20250305"), ({"mcp_servers": [{"name": "x"}]}, "mcp_servers"),
        ({"n": 2}, "n is not"), ({"stop": ["x"]}, "stop_sequences"), ({"regex": "a"}, "guided_regex"),
        ({"messages": [{"role": "user", "content": [{"type": "search_result"}]}]}, "messages.0.content.0"),
        ({"messages": [{"role": "robot", "content": ""}]}, "messages"),
        ({"tool_choice": {"type": "any"}}, "tool_choice"), ({"temperature": -1}, "temperature"),
    ]:  # fmt: skip
        status, kind, text = told(ask(**fields))
        assert (status, kind) == invalid and named in text
    assert told(ask("/v1/messages/nothing"))[:2] == (404, "not_found_error")
    assert told(client.get("/v1/messages"))[:2] == (405, "invalid_request_error")
    huge = b'{"messages": "' + b"x" * (1 << 20) + b'"}'
    assert told(client.post("/v1/messages", content=huge))[:2] == (413, "request_too_large")
    engine.script.refuse = Refused([], "ServerOverloaded", "full", None, 3)
    response = ask()
    assert told(response) == (503, "overloaded_error", "full") and response.headers["retry-after"] == "3"


def test_an_overflow_is_told_in_words_that_clients_know(ask: Callable[..., httpx.Response]) -> None:
    long = [{"role": "user", "content": "one " * 800}]
    assert "prompt is too long: " in ask(messages=long).json()["error"]["message"]


def test_an_answer_may_have_what_the_context_leaves(
    ask: Callable[..., httpx.Response], engine: FakeEngine
) -> None:
    """As Anthropic's API since Claude 4.5: clients ask for 64,000 tokens where nobody told them a number."""
    assert ask(max_tokens=64_000).json()["stop_reason"] == "end_turn"
    engine.script.endless = True
    whole = ask(max_tokens=64_000).json()
    added = engine.added[-1]
    assert added.params.max_new_tokens == 512 - len(added.prompt_ids) == whole["usage"]["output_tokens"]
    assert whole["stop_reason"] == "model_context_window_exceeded"
    message = message_of(read_events(ask(max_tokens=64_000, stream=True).content))
    assert message["stop_reason"] == "model_context_window_exceeded"
    fitting = ask(max_tokens=512 - len(added.prompt_ids)).json()
    assert fitting["stop_reason"] == "max_tokens"


def test_a_key_as_anthropics_clients_send_it(start_worker: Callable[..., Any], engine: FakeEngine) -> None:
    worker = start_worker(worker=14, api_key=["secret"])
    body = {"messages": MESSAGES, "max_tokens": 10}
    with http_client(worker.url) as client:
        refused = client.post("/v1/messages", json=body)
        assert refused.status_code == 401 and refused.json()["error"]["type"] == "authentication_error"
        headers = {"x-api-key": "secret", "anthropic-version": "2023-06-01", "anthropic-beta": "x"}
        assert client.post("/v1/messages", json=body, headers=headers).status_code == 200


def test_a_failure_within_a_stream(ask: Callable[..., httpx.Response], engine: FakeEngine) -> None:
    engine.script.finish_error, engine.script.error_after = "broken", 3
    events = read_events(ask(stream=True).content)
    assert events[-1] == {"type": "error", "error": {"type": "api_error", "message": "broken"}}
    assert events[0]["type"] == "message_start" and "message_delta" not in str(events)


def test_images_are_refused_by_a_model_that_does_not_see(ask: Callable[..., httpx.Response]) -> None:
    data = base64.b64encode(b"x").decode()
    source = {"type": "base64", "media_type": "image/png", "data": data}
    content = [{"type": "image", "source": source}, {"type": "text", "text": "?"}]
    response = ask(messages=[{"role": "user", "content": content}])
    assert response.status_code == 400 and "image" in response.json()["error"]["message"]


@settings(max_examples=60, deadline=None)
@given(texts=pieces, tail=st.sampled_from(["", "<", "end", "<call f>{}"]))
def test_the_blocks_of_a_stream_are_those_of_the_whole_message(texts: list[str], tail: str) -> None:
    record = RequestRecord([PromptRecord([1, 2], SamplingParams())], stream=True)
    record.add_choices(7)
    (choice,) = record.choices
    renderer = MessagesRenderer("msg_1", "model", TaggedParser)
    events = [renderer.opening(2)]
    for number, text in enumerate(texts):
        choice.token_ids.append(number)
        choice.texts.append(text)
        choice.logprobs.append(-1.0)
        events += renderer.events(record)
    choice.end(Finish(7, "stop", 2, len(texts), 0), tail)
    events += [*renderer.events(record), *renderer.end(record)]
    read = read_events(b"".join(events))
    whole = json.loads(MessagesRenderer("msg_1", "model", TaggedParser).answer(record))
    for block in whole["content"]:
        if block["type"] == "tool_use":
            block["input"] = None  # it need not be JSON here
    started = [event["content_block"]["type"] for event in read if event["type"] == "content_block_start"]
    assert started == [block["type"] for block in whole["content"]]
    for index, block in enumerate(whole["content"]):
        deltas = [e["delta"] for e in read if e["type"] == "content_block_delta" and e["index"] == index]
        field = {"text": "text", "thinking": "thinking"}.get(block["type"])
        if field is not None:
            assert "".join(delta.get(field, "") for delta in deltas) == block[field]
