"""`/v1/responses`: over HTTP, before a scripted engine; where it can be, with the openai client."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import openai
import pytest
from support.agents import tokenizer_with, tokenizing
from support.chat_templates import QWEN
from support.fake_engine import FakeEngine
from support.http_client import http_client
from support.sse import http_chunks
from support.tool_outputs import FUNCTIONS

from lightllm.parsers.chat_format import ChatFormat
from lightllm.parsers.families import HERMES
from lightllm.parsers.reasoning import THINK
from lightllm.protocol.messages import Refused
from lightllm.tokenizer import Tokenizer

TOOLS: list[Any] = [
    {"type": "function", "name": name, "parameters": schema} for name, schema in FUNCTIONS.items()
]
THOUGHT = "<think>\nof one\n</think>\n\n"
CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Zürich 🙂"}}\n</tool_call>'
ARGUMENTS = '{"city": "Zürich 🙂"}'


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tokenizer]:
    template = QWEN + "{% if reasoning_effort %}{{ reasoning_effort }}{% endif %}"
    with tokenizer_with(template, tmp_path_factory.mktemp("qwen")) as tokenizer:
        yield tokenizer


@pytest.fixture(scope="module")
def responses_worker(start_worker: Callable[..., Any], qwen: Tokenizer) -> Iterator[Any]:
    with tokenizing(start_worker(worker=12, chat_format=ChatFormat(HERMES, THINK)), qwen) as worker:
        yield worker


@pytest.fixture
def url(responses_worker: Any, engine: FakeEngine) -> str:
    engine.ready(max_req_total_len=2048, slots_total=4096)
    return responses_worker.url


@pytest.fixture
def api(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as api:
        yield api


@pytest.fixture
def ask(url: str) -> Iterator[Callable[..., httpx.Response]]:
    with http_client(url, timeout=60) as client:
        yield lambda **fields: client.post("/v1/responses", json={"input": "one"} | fields)


@pytest.fixture
def prompt(engine: FakeEngine, qwen: Tokenizer) -> Callable[[], str]:
    """Of the latest request."""
    return lambda: qwen.decode(engine.added[-1].prompt_ids.tolist(), skip_special_tokens=False)


def refused(response: httpx.Response) -> tuple[str, str]:
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert error["type"] == "invalid_request_error" and error.keys() == {"message", "type", "param", "code"}
    return error["param"], error["message"]


def test_text_in_and_out(api: openai.OpenAI, engine: FakeEngine) -> None:
    response = api.responses.create(
        model="tiny",
        input="one",
        instructions="two",
        max_output_tokens=50,
        temperature=0.5,
        metadata={"a": "b"},
    )
    assert response.output_text == engine.script.answer
    assert (
        response.id.startswith("resp_") and response.status == "completed" and response.object == "response"
    )
    (item,) = response.output
    assert item.type == "message" and item.role == "assistant" and item.status == "completed"
    assert response.instructions == "two" and response.metadata == {"a": "b"} and response.temperature == 0.5
    assert response.max_output_tokens == 50 and response.model == "tiny"
    usage = response.usage
    assert usage is not None and usage.input_tokens == len(engine.added[-1].prompt_ids)
    assert usage.total_tokens == usage.input_tokens + usage.output_tokens
    assert usage.input_tokens_details.cached_tokens == 3 and usage.output_tokens_details.reasoning_tokens == 0


def test_reasoning_text_and_a_call_are_items(api: openai.OpenAI, engine: FakeEngine) -> None:
    engine.script.answer = THOUGHT + "I look.\n" + CALL
    response = api.responses.create(model="tiny", input="one", tools=TOOLS)
    reasoning, message, call = response.output
    assert reasoning.type == "reasoning" and reasoning.content is not None
    assert [(part.type, part.text) for part in reasoning.content] == [("reasoning_text", "of one")]
    assert message.type == "message" and response.output_text == "I look."
    assert call.type == "function_call" and call.name == "get_weather" and call.arguments == ARGUMENTS
    assert call.call_id.startswith("call_") and call.id is not None and call.id.startswith("fc_")
    assert response.usage is not None and response.usage.output_tokens_details.reasoning_tokens >= 2


def sse_events(response: httpx.Response) -> list[dict[str, Any]]:
    assert response.status_code == 200, response.text
    frames = response.content.split(b"\n\n")
    assert frames.pop() == b""
    return [json.loads(frame.partition(b"\ndata: ")[2]) for frame in frames]


def without_ids(value: Any) -> Any:
    """But for what differs between two answers to the same."""
    if isinstance(value, dict):
        own = {"id", "call_id", "created_at", "completed_at"}
        return {name: without_ids(entry) for name, entry in value.items() if name not in own}
    return [without_ids(entry) for entry in value] if isinstance(value, list) else value


@pytest.mark.parametrize("rounds", [1, 7])
@pytest.mark.parametrize(
    "answer", [THOUGHT + "I look.\n" + CALL + "\n" + CALL, "Größe 🙂", THOUGHT, CALL, "", "\u2028<tool_call>"]
)
def test_a_stream_tells_of_what_the_whole_answer_holds(
    ask: Callable[..., httpx.Response], engine: FakeEngine, answer: str, rounds: int
) -> None:
    engine.script.answer = answer
    engine.script.tokens_a_round = rounds
    whole = ask(tools=TOOLS).json()
    events = sse_events(ask(tools=TOOLS, stream=True))
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert [event["type"] for event in events[:2]] == ["response.created", "response.in_progress"]
    assert events[0]["response"]["status"] == "in_progress" and events[0]["response"]["output"] == []
    assert events[-1]["type"] == "response.completed"
    response = events[-1]["response"]
    assert response["id"] == events[0]["response"]["id"]
    assert without_ids(response) == without_ids(whole)
    assert rebuilt(events[2:-1]) == response["output"]


def rebuilt(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The output by the deltas, checked against what the later events of each item say."""
    output: list[dict[str, Any]] = []
    for event in events:
        kind = event["type"].removeprefix("response.")
        if kind == "output_item.added":
            assert event["output_index"] == len(output) and event["item"]["status"] == "in_progress"
            output.append(event["item"])
            continue
        item = output[-1]
        assert event["output_index"] == len(output) - 1
        assert event.get("item_id", item["id"]) == item["id"]
        if kind == "content_part.added":
            assert item["content"] == [] and event["content_index"] == 0
            item["content"] = [event["part"]]
        elif kind == "function_call_arguments.delta":
            item["arguments"] += event["delta"]
        elif kind == "function_call_arguments.done":
            assert (event["arguments"], event["name"]) == (item["arguments"], item["name"])
        elif kind in ("output_text.delta", "reasoning_text.delta"):
            item["content"][0]["text"] += event["delta"]
        elif kind in ("output_text.done", "reasoning_text.done"):
            assert event["text"] == item["content"][0]["text"]
        elif kind == "content_part.done":
            assert event["part"] == item["content"][0]
        else:
            assert kind == "output_item.done", kind
            assert event["item"] == item | {"status": "completed"}
            item["status"] = "completed"
    return output


def test_each_event_is_named_and_a_chunk_of_its_own(url: str) -> None:
    head, frames = http_chunks(url, "/v1/responses", {"input": "one", "stream": True})
    assert b"text/event-stream" in head and len(frames) > 8
    for frame in frames:
        name, data, *rest = frame.split(b"\n")
        assert rest == [b"", b""]
        assert name == b"event: " + json.loads(data.removeprefix(b"data: "))["type"].encode()


def test_the_clients_stream_ends_with_the_response(api: openai.OpenAI, engine: FakeEngine) -> None:
    engine.script.answer = THOUGHT + "I look.\n" + CALL
    with api.responses.stream(model="tiny", input="one", tools=TOOLS) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_response()
    assert kinds[-1] == "response.completed" and "response.function_call_arguments.delta" in kinds
    assert final.output_text == "I look." and [item.type for item in final.output] == [
        "reasoning", "message", "function_call",
    ]  # fmt: skip


def test_an_answer_that_reaches_its_limit_is_incomplete(ask: Callable[..., httpx.Response]) -> None:
    whole = ask(max_output_tokens=2).json()
    assert whole["status"] == "incomplete" and whole["incomplete_details"] == {"reason": "max_output_tokens"}
    assert whole["output"][-1]["status"] == "incomplete" and whole["usage"]["output_tokens"] == 2
    last = sse_events(ask(max_output_tokens=2, stream=True))[-1]
    assert last["type"] == "response.incomplete"
    assert without_ids(last["response"]) == without_ids(whole)


def test_an_error_in_a_stream_is_its_last_event(
    ask: Callable[..., httpx.Response], engine: FakeEngine
) -> None:
    engine.script.finish_error = "the device is gone"
    engine.script.error_after = 2
    events = sse_events(ask(stream=True))
    assert events[-1]["type"] == "response.failed"
    response = events[-1]["response"]
    assert response["status"] == "failed"
    assert response["error"] == {"code": "server_error", "message": "the device is gone"}
    assert ask().status_code == 500


def test_what_the_engine_refuses_has_the_shape_of_the_api(
    ask: Callable[..., httpx.Response], engine: FakeEngine
) -> None:
    engine.script.refuse = Refused([], "ServerOverloaded", "the waiting list is full", retry_after=3)
    response = ask(stream=True)
    assert response.status_code == 503 and response.json()["error"]["code"] == "server_overloaded"


def test_items_become_the_messages_of_a_chat(
    ask: Callable[..., httpx.Response], url: str, engine: FakeEngine, prompt: Callable[[], str]
) -> None:
    call = {"name": "get_weather", "arguments": ARGUMENTS}
    items = [
        {"role": "developer", "content": "two"},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "one"}]},
        {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "of"}]},
        {"type": "message", "id": "msg_1", "role": "assistant", "status": "completed",
         "content": [{"type": "output_text", "text": "I look.", "annotations": []}]},
        {"type": "function_call", "id": "fc_1", "call_id": "call_1", **call},
        {"type": "function_call_output", "call_id": "call_1", "output": "rain"},
        {"role": "assistant", "content": "It rains."},
        {"role": "user", "content": "two"},
    ]  # fmt: skip
    assert ask(input=items, instructions="one", tools=TOOLS).status_code == 200
    own = prompt()
    messages = [
        {"role": "system", "content": "one"},
        {"role": "developer", "content": "two"},
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "I look.", "reasoning_content": "of",
         "tool_calls": [{"id": "call_1", "type": "function", "function": call}]},
        {"role": "tool", "tool_call_id": "call_1", "content": "rain"},
        {"role": "assistant", "content": "It rains."},
        {"role": "user", "content": "two"},
    ]  # fmt: skip
    tools = [
        {"type": "function", "function": {k: v for k, v in tool.items() if k != "type"}} for tool in TOOLS
    ]
    body = {"messages": messages, "tools": tools, "max_tokens": 5}
    assert httpx.post(f"{url}/v1/chat/completions", json=body, timeout=60).status_code == 200
    assert own == prompt() and "rain" in own and "I look." in own


def test_the_outputs_of_an_answer_can_be_sent_back(
    ask: Callable[..., httpx.Response], engine: FakeEngine, prompt: Callable[[], str]
) -> None:
    engine.script.answer = THOUGHT + "I look.\n" + CALL
    output = ask(tools=TOOLS).json()["output"]
    result = {"type": "function_call_output", "call_id": output[-1]["call_id"], "output": "rain"}
    assert ask(input=[{"role": "user", "content": "one"}, *output, result], tools=TOOLS).status_code == 200
    assert "rain" in prompt() and "get_weather" in prompt()


def test_options_are_those_of_a_chat(
    ask: Callable[..., httpx.Response], engine: FakeEngine, prompt: Callable[[], str]
) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    form = {"type": "json_schema", "name": "x", "schema": schema, "strict": True}
    answer = ask(
        text={"format": form},
        reasoning={"effort": "low", "summary": "auto"},
        top_p=0.5,
        top_k=7,
        seed=3,
        store=False,
    ).json()
    params = engine.added[-1].params
    assert json.loads(params.guided_json) == schema
    assert (params.top_p, params.top_k, params.seed) == (0.5, 7, 3)
    assert prompt().rstrip().endswith("low")
    assert answer["text"]["format"]["schema"] == schema and answer["reasoning"]["effort"] == "low"
    ask(tools=TOOLS, tool_choice={"type": "function", "name": "get_time"})
    assert "get_time" in engine.added[-1].params.call_grammar


@pytest.mark.parametrize("answer", [THOUGHT + "I look, größe 🙂.\n" + CALL, "one two", THOUGHT + CALL])
@pytest.mark.parametrize("rounds", [1, 5])
def test_logprobs_are_those_of_the_tokens_that_the_text_comes_of(
    ask: Callable[..., httpx.Response], engine: FakeEngine, answer: str, rounds: int
) -> None:
    engine.script.answer, engine.script.tokens_a_round = answer, rounds
    fields: dict[str, Any] = {"tools": TOOLS, "include": ["message.output_text.logprobs"], "top_logprobs": 2}
    whole = ask(**fields).json()
    assert whole["top_logprobs"] == 2
    parts = [item["content"][0] for item in whole["output"] if item["type"] == "message"]
    for part in parts:
        said = b"".join(bytes(entry["bytes"]) for entry in part["logprobs"]).decode()
        assert said.strip() == part["text"].strip() != ""
        assert all(len(entry["top_logprobs"]) == 2 for entry in part["logprobs"])
    assert len(parts) == (answer != THOUGHT + CALL)
    events = sse_events(ask(stream=True, **fields))
    deltas = [event for event in events if event["type"] == "response.output_text.delta"]
    (done,) = [event for event in events if event["type"] == "response.output_text.done"] or [
        {"logprobs": []}
    ]
    told = [entry for event in deltas for entry in event["logprobs"]]
    assert told == done["logprobs"] == [entry for part in parts for entry in part["logprobs"]]
    assert ask(tools=TOOLS).json()["output"][-1].get("content", [{}])[0].get("logprobs", []) == []


def test_a_stream_begins_before_there_is_a_token(url: str, engine: FakeEngine) -> None:
    engine.script.halt_at = 0
    with httpx.stream(
        "POST", f"{url}/v1/responses", json={"input": "one", "stream": True}, timeout=60
    ) as stream:
        lines = stream.iter_lines()
        seen = [line for line in (next(lines) for _ in range(5)) if line.startswith("event:")]
        assert seen == ["event: response.created", "event: response.in_progress"]
        engine.script.halt_at = None
        assert "event: response.completed" in list(lines)


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        ({"tools": [{"type": "web_search"}]}, "tools", "'web_search' is not supported"),
        ({"tools": [{"type": "function"}]}, "tools", "tools.0 has no name"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input", "input.0: Item with id 'x' not found"),
        ({"input": [{"id": f"msg_{'a' * 48}_0"}]}, "input", "not found"),
        ({"input": [{"content": "x"}]}, "input", "neither a type nor a role"),
        ({"input": [{"type": "function_call_output", "call_id": "a", "output": "b"}]}, "input", "no function_call"),
        ({"input": [{"type": "function_call", "name": "a"}]}, "input", "needs call_id"),
        ({"input": [{"role": "user", "content": [{"type": "input_file"}]}]}, "input", "'input_file'"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input", "image_url"),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "http://a/b"}]}]},
         "input", "input.0: content of type"),
        ({"input": []}, "input", "input is empty"),
        ({"input": 5}, "input", "input"),
        ({"max_output_tokens": 0}, "max_output_tokens", "max_output_tokens must be at least 1"),
        ({"max_output_tokens": 100_000}, "max_output_tokens", "maximum context length"),
        ({"max_tokens": 5}, "max_tokens", "use max_output_tokens"),
        ({"messages": [1]}, "messages", "use input"),
        ({"n": 2}, "n", "n is not supported"),
        ({"truncation": "last"}, "truncation", "auto or disabled, not 'last'"),
        ({"include": ["everything"]}, "include", "is not supported"),
        ({"top_logprobs": 21}, "top_logprobs", "[0, 20]"),
        ({"logprobs": True}, "logprobs", "use include"),
        ({"text": {"verbosity": "low"}}, "text.verbosity", "text.verbosity"),
        ({"text": {"format": {"type": "xml"}}}, "text.format", "text.format 'xml'"),
        ({"temperature": -1}, "temperature", "temperature"),
        ({"tool_choice": "required"}, "tool_choice", "no tools"),
        ({"conversation": "conv_1"}, "conversation", "use previous_response_id"),
        ({"background": True, "store": False}, "background", "not supported with store"),
        ({"input": [{"role": "user", "content": "x"}] * 2049}, "input", "2048"),
        ({"input": [{"role": "user", "content": [{"type": "input_text", "text": "x"}] * 2049}]}, "input", "2048"),
        ({"tools": [{"type": "function", "name": "x"}] * 1025}, "tools", "1024"),
        ({"include": ["reasoning.encrypted_content"] * 65}, "include", "64"),
        ({"metadata": {"a": "x" * 513}}, "metadata", "512"),
        ({"metadata": {"a" * 65: "x"}}, "metadata", "64"),
        ({"metadata": {str(i): "" for i in range(17)}}, "metadata", "16"),
        ({"use_beam_search": True}, "use_beam_search", "not supported"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_by_name(
    ask: Callable[..., httpx.Response], fields: dict, param: str, message: str
) -> None:
    said = refused(ask(**fields))
    assert said[0] == param and message in said[1]


def test_a_model_can_be_parsed_out_of_the_answer(api: openai.OpenAI, engine: FakeEngine) -> None:
    from pydantic import BaseModel

    class Weather(BaseModel):
        city: str

    engine.script.answer = '{"city":"one"}'
    response = api.responses.parse(model="tiny", input="one", text_format=Weather)
    assert response.output_parsed == Weather(city="one")
    assert "city" in engine.added[-1].params.guided_json
