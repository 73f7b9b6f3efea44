"""Tools and reasoning of chats: over HTTP, before a scripted engine."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from support.agents import tokenizer_with, tokenizing
from support.chat_templates import QWEN
from support.fake_engine import FakeEngine
from support.http_client import http_client
from support.sse import chunks
from support.tool_outputs import FUNCTIONS

from lightllm.httpserver.openai import chat_tools
from lightllm.parsers.chat_format import ChatFormat, find_format
from lightllm.parsers.families import HERMES
from lightllm.parsers.reasoning import THINK
from lightllm.tokenizer import Tokenizer

TEMPLATE = (
    QWEN
    + "{% if enable_thinking %}<think>\n{% endif %}{% if reasoning_effort %}{{ reasoning_effort }}{% endif %}"
)
TOOLS = [
    {"type": "function", "function": {"name": name, "parameters": schema}}
    for name, schema in FUNCTIONS.items()
]
MESSAGES = [{"role": "user", "content": "one"}]
THOUGHT = "<think>\nof one\n</think>\n\n"
CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Zürich 🙂"}}\n</tool_call>'
LARGE = {"type": "function", "function": {"name": "f", "parameters": {"enum": ["x" * 600_000]}}}
NAMED = {"type": "function", "function": {"name": "get_time"}}


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tokenizer]:
    with tokenizer_with(TEMPLATE, tmp_path_factory.mktemp("qwen")) as tokenizer:
        yield tokenizer


@pytest.fixture(scope="module")
def with_tools(start_worker: Callable[..., Any], qwen: Tokenizer) -> Iterator[Any]:
    with tokenizing(start_worker(worker=11, chat_format=ChatFormat(HERMES, THINK)), qwen) as worker:
        yield worker


@pytest.fixture
def ask(with_tools: Any, engine: FakeEngine) -> Iterator[Callable[..., httpx.Response]]:
    with http_client(with_tools.url, timeout=60) as client:

        def ask(answer: str = "one", **fields: Any) -> httpx.Response:
            engine.script.answer = answer
            engine.ready(max_req_total_len=2048, slots_total=2048)
            body = {"messages": MESSAGES, "tools": TOOLS, "max_tokens": 300} | fields
            return client.post("/v1/chat/completions", json={k: v for k, v in body.items() if v is not None})

        yield ask


def choice(response: httpx.Response) -> dict[str, Any]:
    assert response.status_code == 200, response.text
    return response.json()["choices"][0]


def test_an_answer_with_reasoning_and_a_call(ask: Callable[..., httpx.Response]) -> None:
    response = ask(THOUGHT + "I look.\n" + CALL)
    answer = choice(response)
    (call,) = answer["message"].pop("tool_calls")
    assert answer["message"] == {
        "role": "assistant", "content": "I look.", "refusal": None, "reasoning_content": "of one", "reasoning": "of one",
    }  # fmt: skip
    assert call["type"] == "function" and call["id"].startswith("call_")
    assert call["function"] == {"name": "get_weather", "arguments": '{"city": "Zürich 🙂"}'}
    assert answer["finish_reason"] == "tool_calls"
    usage = response.json()["usage"]
    assert 2 <= usage["completion_tokens_details"]["reasoning_tokens"] < usage["completion_tokens"] - 5


def test_the_same_as_a_stream(ask: Callable[..., httpx.Response]) -> None:
    response = ask(THOUGHT + CALL, stream=True, stream_options={"include_usage": True})
    *events, usage = chunks(response)
    deltas = [event["choices"][0]["delta"] for event in events]
    assert "".join(delta.get("reasoning_content", "") for delta in deltas) == "of one"
    assert "".join(delta.get("reasoning", "") for delta in deltas) == "of one"
    calls = [call for delta in deltas for call in delta.get("tool_calls", ())]
    assert calls[0]["function"]["name"] == "get_weather" and calls[0]["index"] == 0 and calls[0]["id"]
    assert all("id" not in call and "name" not in call["function"] for call in calls[1:]) and len(calls) > 3
    assert "".join(call["function"]["arguments"] for call in calls) == '{"city": "Zürich 🙂"}'
    assert events[-1]["choices"][0]["finish_reason"] == "tool_calls"
    assert usage["usage"]["completion_tokens_details"]["reasoning_tokens"] >= 2


def test_without_tools_a_call_is_text(ask: Callable[..., httpx.Response]) -> None:
    for fields in ({"tools": None}, {"tool_choice": "none"}):
        answer = choice(ask(CALL, **fields))
        assert answer["message"]["content"] == CALL and answer["finish_reason"] == "stop"


@pytest.mark.parametrize(
    ("fields", "content"),
    [({"separate_reasoning": False}, THOUGHT + "one"), ({"include_reasoning": False}, "one")],
)
def test_reasoning_where_the_client_wants_it(
    ask: Callable[..., httpx.Response], fields: dict, content: str
) -> None:
    message = choice(ask(THOUGHT + "one", **fields))["message"]
    assert message == {"role": "assistant", "content": content, "refusal": None}


def test_a_demanded_call_is_constrained_in_the_familys_form(
    ask: Callable[..., httpx.Response], engine: FakeEngine
) -> None:
    for wanted, names in (("required", ["get_weather", "get_time"]), (NAMED, ["get_time"])):
        choice(ask(THOUGHT + CALL, tool_choice=wanted))
        params = engine.added[-1].params
        assert [name for name in FUNCTIONS if f'"{name}"' in params.call_grammar] == names
        assert '"<tool_call>\\n{\\"name\\": \\""' in params.call_grammar
        assert params.constraint_prefix.startswith('start: (("<think>")')
    choice(ask(CALL, tool_choice="required", parallel_tool_calls=False, enable_thinking=True))
    params = engine.added[-1].params
    assert "next{" not in params.call_grammar
    assert params.constraint_prefix.startswith("start: (thought0)")


def test_a_function_that_is_named_is_called_once(
    ask: Callable[..., httpx.Response], engine: FakeEngine
) -> None:
    """As OpenAI has it; clients that read structured output from a call take no second one."""
    named = {"type": "function", "function": {"name": "get_weather"}}
    for wanted in ({"tool_choice": named}, {"tool_choice": named, "parallel_tool_calls": False}):
        answer = choice(ask(CALL + "\n" + CALL, **wanted))
        assert len(answer["message"]["tool_calls"]) == 1
        assert "next{" not in engine.added[-1].params.call_grammar
    answer = choice(ask(CALL + "\n" + CALL, tool_choice=named, parallel_tool_calls=True))
    assert len(answer["message"]["tool_calls"]) == 2
    assert "next{" in engine.added[-1].params.call_grammar


def test_a_template_without_tools_does_for_calls_that_are_demanded(
    worker: Any, client: httpx.Client, engine: FakeEngine
) -> None:
    engine.script.answer = '[{"name": "get_time", "parameters": {}}]'
    body = {"messages": MESSAGES, "tools": TOOLS, "max_tokens": 60}
    assert client.post("/v1/chat/completions", json=body).json()["error"]["param"] == "tools"
    (call,) = choice(client.post("/v1/chat/completions", json=body | {"tool_choice": NAMED}))["message"][
        "tool_calls"
    ]
    assert call["function"] == {"name": "get_time", "arguments": "{}"}
    assert '"get_time"' in engine.added[-1].params.call_grammar


def test_only_allowed_tools_are_shown(
    ask: Callable[..., httpx.Response], engine: FakeEngine, qwen: Tokenizer
) -> None:
    for wanted in (
        {"allowed_tools": {"mode": "required", "tools": [NAMED]}},
        {"mode": "required", "tools": [NAMED]},
    ):
        choice(ask(CALL, tool_choice={"type": "allowed_tools", **wanted}))
        prompt = qwen.decode(engine.added[-1].prompt_ids.tolist(), skip_special_tokens=False)
        assert "get_time" in prompt and "get_weather" not in prompt
        assert "get_time" in engine.added[-1].params.call_grammar


def test_strict_schemas_hold_where_no_call_is_demanded(
    ask: Callable[..., httpx.Response], engine: FakeEngine
) -> None:
    strict = [{**TOOLS[0], "function": {**TOOLS[0]["function"], "strict": True}}, TOOLS[1]]
    choice(ask(CALL, tools=strict))
    assert engine.added[-1].params.call_grammar.startswith("start: FREE | UNTIL ")
    choice(ask(CALL))
    assert not engine.added[-1].params.constrained


def test_structured_output_starts_behind_the_reasoning(
    ask: Callable[..., httpx.Response], engine: FakeEngine
) -> None:
    form = {"type": "json_object"}
    choice(ask('{"a": 1}', tools=None, response_format=form, enable_thinking=True))
    params = engine.added[-1].params
    assert params.guided_json and params.constraint_prefix.startswith("start: (thought0)")
    choice(ask(CALL, response_format=form))
    assert "| content" in engine.added[-1].params.call_grammar and not engine.added[-1].params.guided_json


def test_the_old_names_get_the_old_answer(ask: Callable[..., httpx.Response]) -> None:
    functions = [tool["function"] for tool in TOOLS]
    fields = {"tools": None, "functions": functions}
    answer = choice(ask(CALL + "\n" + CALL, **fields, function_call={"name": "get_weather"}))
    assert answer["message"]["function_call"] == {"name": "get_weather", "arguments": '{"city": "Zürich 🙂"}'}
    assert answer["finish_reason"] == "function_call" and "tool_calls" not in answer["message"]
    deltas = [event["choices"][0]["delta"] for event in chunks(ask(CALL, **fields, stream=True))]
    calls = [delta["function_call"] for delta in deltas if "function_call" in delta]
    assert calls[0]["name"] == "get_weather"
    assert "".join(call["arguments"] for call in calls) == '{"city": "Zürich 🙂"}'


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tool_choice": "sometimes"}, "tool_choice"),
        ({"tool_choice": {"type": "function", "function": {"name": "other"}}}, "tool_choice"),
        ({"tool_choice": {"type": "custom"}}, "tool_choice"),
        ({"tool_choice": {"type": "allowed_tools", "tools": []}}, "tool_choice"),
        ({"tool_choice": {"type": "allowed_tools", "allowed_tools": 1}}, "tool_choice"),
        ({"tool_choice": 7}, "tool_choice"),
        ({"tool_choice": "required", "tools": None}, "tool_choice"),
        ({"tool_choice": "required", "tools": [{"type": "function", "function": {"name": 'say "x"'}}]}, "tools"),
        (
            {"tool_choice": "required",
             "tools": [{"type": "function", "function": {"name": "f", "parameters": {"properties": {"a": {"type": "x"}}}}}]},
            "tools",
        ),
        ({"tool_choice": "required", "tools": [LARGE]}, "tools"),
        ({"tool_choice": "required", "allowed_token_ids": [1]}, "tool_choice"),
        ({"thinking": 3}, "thinking"),
        ({"enable_thinking": True, "chat_template_kwargs": {"thinking": False}}, "chat_template_kwargs"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused(ask: Callable[..., httpx.Response], fields: dict, param: str) -> None:
    response = ask(**fields)
    assert response.status_code == 400, response.text
    assert response.json()["error"]["param"] == param


@pytest.mark.parametrize(
    "fields",
    [{"enable_thinking": True}, {"thinking": {"type": "enabled"}}, {"chat_template_kwargs": {"thinking": True}}],
)  # fmt: skip
def test_thinking_has_many_names(ask: Callable[..., httpx.Response], fields: dict) -> None:
    message = choice(ask("of one\n</think>\n\ntwo", **fields))["message"]
    assert message["reasoning"] == "of one" and message["content"] == "two"
    assert "reasoning" not in choice(ask("two", reasoning_effort="none"))["message"]


def test_reasoning_that_is_continued_may_be_long(
    ask: Callable[..., httpx.Response], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chat_tools, "_PROMPT_END", 64)
    begun = [*MESSAGES, {"role": "assistant", "content": "<think>\n" + "of one two " * 20}]
    answer = ask(
        "of one\n</think>\n\ntwo", messages=begun, continue_final_message=True, add_generation_prompt=False
    )
    message = choice(answer)["message"]
    assert message["reasoning"] == "of one" and message["content"] == "two"


def test_what_is_found_in_a_template_and_a_vocabulary() -> None:
    def found(template: str, *tokens: str, tool: str = "auto", reasoning: str = "auto") -> tuple[str, str]:
        form, line = find_format(
            tool, reasoning, [template], lambda token: 1 if token in tokens else None, frozenset()
        )
        names = tuple(one.name if one else "none" for one in (form.family, form.reasoning))
        assert line.startswith("tool calls: ")
        return names

    assert found(QWEN) == ("hermes", "think")
    assert found("{{ messages }}") == found("") == ("none", "none")
    assert found("{{ messages }}", "[TOOL_CALLS]", "[ARGS]", "<think>", "</think>") == ("mistral_v11", "none")
    assert found("", "<think>", "</think>") == ("none", "think")
    assert found(QWEN, tool="none", reasoning="none") == ("none", "none")
    assert found(QWEN, tool="deepseekv31", reasoning="minimax-append-think") == ("deepseek_v31", "think")
    assert found("<|channel|>{{ x }}<|message|>") == ("harmony", "gpt_oss")
    assert found("<|channel>thought <|tool_call>call:") == found(
        "", "<|tool_call>", "<tool_call|>", "<|channel>", "<channel|>"
    )
    assert found("<|channel>thought <|tool_call>call:") == ("gemma4", "gemma4")
    assert found("<think></think>function<｜tool_sep｜><steptml:invoke") == ("step3", "think")
    assert found("When using tools, make calls in a single JSON array: ...") == ("xlam", "none")
    assert found("<think></think><answer><tool_calls>") == ("hunyuan_a13b", "hunyuan_a13b")
    assert found("<think></think><response>{{ x }}</response>")[1] == "ernie45"
    assert found("", tool="hunyuan", reasoning="hunyuan") == ("hunyuan_a13b", "hunyuan_a13b")


@pytest.mark.parametrize(
    ("generation_prompt", "may_think"),
    [
        ("{{ 'assistant: ' }}{% if thinking %}{{ '<think>\n' }}{% endif %}", False),
        ("{{ '<think>' if thinking else '</think>' }}", False),
        ("{% if enable_thinking is false %}{{ '<think>\n\n</think>\n\n' }}{% endif %}", True),
        ("{{ 'assistant: ' }}", True),
    ],
    ids=["opened", "opened or closed", "closed by an empty one", "left to the model"],
)
def test_a_model_whose_template_opens_the_reasoning_has_none_before_a_constraint_where_it_is_not_opened(
    generation_prompt: str, may_think: bool
) -> None:
    history = "{% for message in messages %}{{ '<think>' + message.reasoning + '</think>' }}{% endfor %}"
    template = f"{history}{{% if add_generation_prompt %}}{generation_prompt}{{% endif %}}"
    form, _ = find_format("auto", "think", [template], lambda token: None, frozenset())
    assert bool(form.reasoning_before("begin", content=True)) == may_think
    assert form.reasoning_before("reasoning", content=True)
