"""Ollama's API, over HTTP before a scripted engine."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.agents import tokenizer_with, tokenizing
from support.chat_templates import QWEN
from support.fake_engine import DEFAULT_ANSWER, FakeEngine
from support.http_client import http_client
from support.sse import http_chunks
from support.tagged_parser import TaggedParser
from support.tool_outputs import FUNCTIONS

from lightllm.httpserver.ollama.models import OllamaChatRequest
from lightllm.httpserver.ollama.reading import chat_of
from lightllm.httpserver.ollama.rendering import OllamaRenderer
from lightllm.httpserver.record import PromptRecord, RequestRecord
from lightllm.parsers.chat_format import ChatFormat
from lightllm.parsers.families import HERMES
from lightllm.parsers.reasoning import THINK
from lightllm.protocol.messages import Finish, Refused
from lightllm.sampling_params import SamplingParams
from lightllm.tokenizer import Tokenizer

MESSAGES: Any = [{"role": "user", "content": "What is AI?"}]
TOOLS = [
    {"type": "function", "function": {"name": name, "parameters": schema}}
    for name, schema in FUNCTIONS.items()
]
CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Zürich 🙂"}}\n</tool_call>'
FINAL = {
    "model", "created_at", "done", "done_reason", "total_duration", "load_duration", "prompt_eval_count", "prompt_eval_duration",
    "eval_count", "eval_duration",
}  # fmt: skip
pieces = st.lists(st.text(st.sampled_from("<>/ acehiklnt"), max_size=12), min_size=1, max_size=8)


def lines(response: httpx.Response) -> list[dict[str, Any]]:
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "application/x-ndjson"
    return [json.loads(line) for line in response.content.splitlines()]


def message_of(objects: list[dict[str, Any]]) -> dict[str, Any]:
    """What a client puts together."""
    message: dict[str, Any] = {"role": "assistant", "content": ""}
    for part in (one["message"] for one in objects):
        assert part.pop("role") == "assistant"
        for name, value in part.items():
            message[name] = message[name] + value if name in message else value
    return message


@pytest.fixture(scope="module")
def agent_worker(start_worker: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    worker = start_worker(worker=15, chat_format=ChatFormat(HERMES, THINK))
    template = QWEN + "{% if enable_thinking %}<think>\n{% endif %}"
    with (
        tokenizer_with(template, tmp_path_factory.mktemp("qwen")) as tokenizer,
        tokenizing(worker, tokenizer),
    ):
        yield worker


@pytest.fixture
def agent(agent_worker: Any, engine: FakeEngine) -> Iterator[Callable[..., httpx.Response]]:
    with http_client(agent_worker.url, timeout=60) as client:

        def ask(answer: str, **fields: Any) -> httpx.Response:
            engine.script.answer = answer
            engine.ready(max_req_total_len=2048, slots_total=2048)
            body = {"model": "tiny", "messages": MESSAGES, "tools": TOOLS} | fields
            return client.post("/api/chat", json=body)

        yield ask


def test_a_chat(client: httpx.Client, engine: FakeEngine, tokenizer: Tokenizer) -> None:
    options = {
        "num_predict": 50,
        "temperature": 0.5,
        "top_k": 7,
        "repeat_penalty": 1.5,
        "stop": ["x"],
        "seed": 5,
        "num_ctx": 4096,
    }
    body = {"model": "tiny:latest", "messages": MESSAGES, "options": options, "keep_alive": "5m"}
    answer = client.post("/api/chat", json={**body, "stream": False}).json()
    assert answer["message"] == {"role": "assistant", "content": DEFAULT_ANSWER}
    assert answer["model"] == "tiny:latest" and answer["done"] is True and answer["done_reason"] == "stop"
    assert answer.keys() == FINAL | {"message"}
    (added,) = engine.added
    assert answer["prompt_eval_count"] == len(added.prompt_ids) and answer["eval_count"] > 5
    assert answer["total_duration"] >= answer["eval_duration"] + answer["prompt_eval_duration"] > 0
    assert tokenizer.decode(added.prompt_ids.tolist(), skip_special_tokens=False).endswith(
        "AI?</s><|assistant|>"
    )
    params = added.params
    assert (params.max_new_tokens, params.temperature, params.top_k, params.seed) == (50, 0.5, 7, 5)
    assert params.repetition_penalty == 1.5 and params.stop_sequences == ["x"]
    *parts, last = lines(client.post("/api/chat", json=body))
    assert len(parts) > 5 and not any(part["done"] for part in parts)
    assert message_of([*parts, last]) == answer["message"]
    assert last.keys() == answer.keys() and last["eval_count"] == answer["eval_count"]


@pytest.mark.parametrize(
    "path, asked", [("/api/chat", {"messages": MESSAGES}), ("/api/generate", {"prompt": "hi"}), ("/api/generate", {"prompt": "hi", "raw": True})]
)  # fmt: skip
def test_a_priority_is_one_here_too(client: httpx.Client, engine: FakeEngine, path: str, asked: dict) -> None:
    assert client.post(path, json={"model": "x", "priority": 7, **asked}).status_code == 200
    assert engine.added[-1].params.priority == 7
    assert client.post(path, json={"model": "x", "priority": [], **asked}).status_code == 400


def test_without_a_limit_that_fits_the_answer_gets_what_fits(
    client: httpx.Client, engine: FakeEngine
) -> None:
    for options in ({}, {"num_predict": -1}, {"num_predict": 5000}):
        assert (
            client.post(
                "/api/chat", json={"model": "x", "messages": MESSAGES, "options": options}
            ).status_code
            == 200
        )
        assert engine.added[-1].params.max_new_tokens == 512 - len(engine.added[-1].prompt_ids)
    for options in ({}, {"num_predict": 5000}):
        body = {"model": "x", "prompt": "one", "raw": True, "options": options}
        assert client.post("/api/generate", json=body).status_code == 200
        assert engine.added[-1].params.max_new_tokens == 512 - len(engine.added[-1].prompt_ids)


def test_a_prompt_with_and_without_the_template(
    client: httpx.Client, engine: FakeEngine, tokenizer: Tokenizer
) -> None:
    body = {"model": "x", "prompt": "one", "system": "two", "stream": False}
    answer = client.post("/api/generate", json=body).json()
    assert answer.pop("response") == DEFAULT_ANSWER and answer.keys() == FINAL
    parts = lines(client.post("/api/generate", json={"model": "x", "prompt": "one", "raw": True}))
    assert "".join(part["response"] for part in parts) == DEFAULT_ANSWER
    prompts = [tokenizer.decode(one.prompt_ids.tolist(), skip_special_tokens=False) for one in engine.added]
    assert prompts == ["<s><|system|>two</s><|user|>one</s><|assistant|>", "<s>one"]


def test_reasoning_and_calls_are_told_apart(agent: Callable[..., httpx.Response]) -> None:
    text = f"of one\n</think>\n\nI look.\n{CALL}"
    whole = agent(text, think=True, stream=False).json()["message"]
    (call,) = whole["tool_calls"]
    assert whole["thinking"] == "of one" and whole["content"] == "I look." and call["id"]
    assert call["function"] == {"index": 0, "name": "get_weather", "arguments": {"city": "Zürich 🙂"}}
    streamed = message_of(lines(agent(text, think=True)))
    for message in (whole, streamed):
        del message["tool_calls"][0]["id"]
    assert streamed == whole
    assert "thinking" not in agent("<think>of</think>one", think=False, stream=False).json()["message"]


def test_results_and_images_of_a_conversation() -> None:
    call = {"function": {"name": "f", "arguments": {"a": 1}}}
    messages = [
        {"role": "user", "content": "one", "images": ["AAAA"]},
        {
            "role": "assistant",
            "content": "",
            "thinking": "of",
            "tool_calls": [call, {"function": {"name": "g"}}],
        },
        {"role": "tool", "content": "2", "tool_name": "g"},
        {"role": "tool", "content": "1", "tool_name": "f"},
    ]
    chat = chat_of(OllamaChatRequest.model_validate({"model": "x", "messages": messages}), True)
    user, assistant, *results = chat.messages
    assert [part.type for part in user.content] == ["image_url", "text"]
    assert user.content[0].image_url == "data:image/png;base64,AAAA"
    assert [(c.function.name, c.function.arguments) for c in assistant.tool_calls] == [
        ("f", {"a": 1}),
        ("g", {}),
    ]
    first, second = (call.id for call in assistant.tool_calls)
    assert [(m.tool_call_id, m.name, m.content) for m in results] == [(second, "g", "2"), (first, "f", "1")]
    assert assistant.reasoning_content == "of" and first != second


def test_forms_of_the_output(client: httpx.Client, engine: FakeEngine) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    for form, expected in (("json", {"type": "object"}), (schema, schema)):
        assert (
            client.post("/api/chat", json={"model": "x", "messages": MESSAGES, "format": form}).status_code
            == 200
        )
        assert json.loads(engine.added[-1].params.guided_json) == expected


def test_a_request_that_says_nothing_loads_the_model(client: httpx.Client, engine: FakeEngine) -> None:
    for path, fields in (
        ("chat", {"message": {"role": "assistant", "content": ""}}),
        ("generate", {"response": ""}),
    ):
        answer = client.post(f"/api/{path}", json={"model": "x"}).json()
        assert answer.pop("created_at").endswith("Z")
        assert answer == {"model": "x", "done": True, "done_reason": "load", **fields}
    assert client.post("/api/chat", json={"model": "x", "keep_alive": 0}).json()["done_reason"] == "unload"
    assert engine.added == []


def test_what_the_model_is(client: httpx.Client) -> None:
    (card,) = client.get("/api/tags").json()["models"]
    assert card["name"] == card["model"] == "tiny" and len(card["digest"]) == 64
    (loaded,) = client.get("/api/ps").json()["models"]
    assert loaded["context_length"] == 512 and card == {name: loaded[name] for name in card}
    assert client.get("/api/version").json()["version"].count(".") == 2
    shown = client.post("/api/show", json={"model": "tiny"}).json()
    kind = shown["model_info"]["general.architecture"]
    assert shown["model_info"][f"{kind}.context_length"] == 512 and "<|assistant|>" in shown["template"]
    assert shown["capabilities"] == ["completion"]


def test_what_the_model_can(agent_worker: Any, engine: FakeEngine) -> None:
    shown = httpx.post(f"{agent_worker.url}/api/show", json={"name": "tiny"}).json()
    assert shown["capabilities"] == ["completion", "tools", "thinking"]


def test_errors_have_ollamas_shape(client: httpx.Client, engine: FakeEngine) -> None:
    def told(path: str = "/api/chat", **fields: Any) -> tuple[int, str]:
        response = client.post(path, json={"model": "x", "messages": MESSAGES} | fields)
        assert response.json().keys() == {"error"}
        return response.status_code, response.json()["error"]

    for fields, named in [
        ({"messages": "x"}, "messages"), ({"options": {"mirostat": 1}}, "mirostat"), ({"options": {"repeat_last_n": 5}}, "repeat_last_n"),
        ({"options": {"temperature": -1}}, "temperature"), ({"logprobs": True}, "logprobs"), ({"think": True}, "thinking"),
        ({"messages": [{"role": "user", "content": "one " * 800}]}, "context length"),
    ]:  # fmt: skip
        status, text = told(**fields)
        assert status == 400 and named in text
    assert "context" in told("/api/generate", prompt="x", context=[1, 2])[1]
    assert "system" in told("/api/generate", prompt="x", system="y", raw=True)[1]
    assert told("/api/pull")[0] == 404
    engine.script.refuse = Refused([], "ServerOverloaded", "full", None, 3)
    assert told() == (503, "full")


def test_a_failure_within_a_stream(client: httpx.Client, engine: FakeEngine) -> None:
    engine.script.finish_error, engine.script.error_after = "broken", 3
    *parts, last = lines(client.post("/api/chat", json={"model": "x", "messages": MESSAGES}))
    assert last == {"error": "broken"} and parts and not any(part["done"] for part in parts)


def test_a_silent_stream_sends_lines_that_are_json(
    start_worker: Callable[..., Any], engine: FakeEngine
) -> None:
    worker = start_worker(worker=1, httpserver_workers=2, sse_keep_alive=0.05)
    engine.script.hold = True

    def go_on_after_two(frames: list[bytes]) -> None:
        engine.script.hold = len(frames) < 2

    _, frames = http_chunks(worker.url, "/api/chat", {"model": "x", "messages": MESSAGES}, go_on_after_two)
    objects = [json.loads(frame) for frame in frames]
    assert [part["message"]["content"] for part in objects[:2]] == ["", ""]
    assert message_of(objects)["content"] == DEFAULT_ANSWER


@settings(max_examples=60, deadline=None)
@given(texts=pieces, tail=st.sampled_from(["", "<", "end", "<call f>{}"]))
def test_the_lines_of_a_stream_make_the_whole_message(texts: list[str], tail: str) -> None:
    record = RequestRecord([PromptRecord([1, 2], SamplingParams())], stream=True)
    record.add_choices(7)
    (choice,) = record.choices
    renderer = OllamaRenderer("model", TaggedParser, chat=True)
    streamed = []
    for number, text in enumerate(texts):
        choice.token_ids.append(number)
        choice.texts.append(text)
        choice.logprobs.append(-1.0)
        streamed += renderer.events(record)
    choice.end(Finish(7, "stop", 2, len(texts), 0), tail)
    streamed += [*renderer.events(record), *renderer.end(record)]
    whole = json.loads(OllamaRenderer("model", TaggedParser, chat=True).answer(record))
    assert message_of([json.loads(line) for line in streamed]) == whole["message"]
