"""What a chat request holds reaches the prompt or is refused: over HTTP, with templates shaped like published ones."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from support.chat_templates import CHATML, DEEPSEEK_V3, GPT_OSS, QWEN, TOOLS
from support.checkpoints import write_tokenizer
from support.fake_engine import FakeEngine

from lightllm.errors import InvalidParameter
from lightllm.httpserver.openai.chat_messages import read_conversation
from lightllm.httpserver.openai.models import ChatRequest
from lightllm.templating.limits import Limits
from lightllm.tokenizer import Tokenizer, load_tokenizer

USER = {"role": "user", "content": "2+2"}
AGAIN = {"role": "user", "content": "and 3+3?"}
LOOPS = "{{ messages[0].content }}{% if messages[0].content == 'now' %}{% for a in range(90000) %}{% for b in range(90000) %}{% endfor %}{% endfor %}{% endif %}"
Ask = Callable[..., httpx.Response]


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Tokenizer]]:
    folder = tmp_path_factory.mktemp("templates")
    write_tokenizer(folder)
    loaded: dict[str, Tokenizer] = {}

    def with_template(source: str) -> Tokenizer:
        if source not in loaded:
            loaded[source] = load_tokenizer(
                str(folder), chat_template=source, template_limits=Limits(cpu_seconds=2)
            )
        return loaded[source]

    yield with_template
    for tokenizer in loaded.values():
        tokenizer.close()


@pytest.fixture
def ask(
    client: httpx.Client, worker: Any, monkeypatch: pytest.MonkeyPatch, tokenizers: Callable[[str], Tokenizer]
) -> Ask:
    def ask(template: str, messages: list[Any], **fields: Any) -> httpx.Response:
        monkeypatch.setattr(worker.encoder, "tokenizer", tokenizers(template))
        body = {"messages": messages, "max_tokens": 2} | fields
        headers = {"Content-Type": "application/json"}
        return client.post("/v1/chat/completions", content=json.dumps(body), headers=headers, timeout=120)

    return ask


@pytest.fixture
def prompt(ask: Ask, engine: FakeEngine, tokenizer: Tokenizer) -> Callable[..., str]:
    """The text that the engine gets."""

    def prompt(template: str, messages: list[Any], **fields: Any) -> str:
        response = ask(template, messages, **fields)
        assert response.status_code == 200, response.text
        return tokenizer.decode(engine.added[-1].prompt_ids.tolist(), skip_special_tokens=False)

    return prompt


def refusal(response: httpx.Response) -> tuple[str | None, str]:
    assert response.status_code == 400, response.text
    return response.json()["error"]["param"], response.json()["error"]["message"]


def called(**function: Any) -> dict[str, Any]:
    call = {"id": "call00001", "type": "function", "function": {"name": "weather"} | function}
    return {"role": "assistant", "content": None, "tool_calls": [call]}


RESULT = {"role": "tool", "tool_call_id": "call00001", "content": "21"}


@pytest.mark.parametrize("arguments", ['{"city": "Rome"}', {"city": "Rome"}], ids=["text", "object"])
def test_tool_rounds_reach_the_prompt(prompt: Callable[..., str], arguments: Any) -> None:
    messages = [USER, called(arguments=arguments), RESULT]
    assert '<SEP>weather\n```json\n{"city": "Rome"}' in prompt(DEEPSEEK_V3, messages)
    assert 'functions.weather<|message|>{"city": "Rome"}' in prompt(GPT_OSS, messages, tools=TOOLS)


def test_openais_old_names_of_tools_and_calls_mean_the_new_ones(prompt: Callable[..., str], ask: Ask) -> None:
    functions = [TOOLS[0]["function"]]
    assert prompt(GPT_OSS, [USER], functions=functions) == prompt(GPT_OSS, [USER], tools=TOOLS)
    assert "type weather" not in prompt(GPT_OSS, [USER], functions=functions, function_call="none")
    old = [
        USER,
        {"role": "assistant", "content": None, "function_call": {"name": "weather", "arguments": "{}"}},
        {"role": "function", "name": "weather", "content": "21"},
    ]
    assert prompt(GPT_OSS, old) == prompt(GPT_OSS, [USER, called(arguments="{}"), RESULT])
    assert refusal(ask(GPT_OSS, [USER], functions=functions, tools=TOOLS))[0] == "functions"
    assert (
        refusal(ask(GPT_OSS, [USER], functions=functions, function_call={"name": "f"}))[0] == "function_call"
    )
    assert (
        refusal(ask(GPT_OSS, [USER], tools=TOOLS, tool_choice="auto", function_call="auto"))[0]
        == "function_call"
    )


@pytest.mark.parametrize(
    ("template", "messages", "fields", "param", "text"),
    [
        (QWEN, [USER], {"reasoning_effort": "high"}, "reasoning_effort", "does not read it"),
        (CHATML, [USER], {"tools": TOOLS}, "tools", "does not render tools"),
        (GPT_OSS, [USER, {"role": "system", "content": "x"}], {}, "messages", "messages.1: "),
        (GPT_OSS, [{"role": "User", "content": "x"}, USER], {}, "messages", "messages.0: "),
        (CHATML, [USER, called(arguments="{}"), RESULT], {}, "messages", "messages.1.tool_calls.0: "),
        (CHATML, [USER, {"role": "assistant"}], {}, "messages", "messages.1 has no content"),
        (CHATML, [USER, {"role": "assistant", "content": "x", "audio": {"id": "1"}}], {}, "messages", "audio"),
        (CHATML, [USER, {"role": "assistant", "content": "x", "prefix": True}], {}, "messages", "continue_final_message"),
        (CHATML, [USER, {"role": "assistant", "content": "x", "partial": True}], {}, "messages", "continue_final_message"),
        (CHATML, [{"role": "user", "content": [{"type": "text"}]}], {}, "messages", "a text part has no text"),
        (CHATML, [USER], {"continue_final_message": True}, "continue_final_message", "assistant message"),
        (CHATML, [USER, called(arguments="{}")], {"continue_final_message": True}, "continue_final_message", "no calls"),
        (GPT_OSS, [USER], {"reasoning_effort": "low", "chat_template_kwargs": {"reasoning_effort": "high"}},
         "reasoning_effort", "'low', but 'high'"),
    ],
)  # fmt: skip
def test_what_would_have_no_effect_is_refused(
    ask: Ask, template: str, messages: list[Any], fields: dict[str, Any], param: str, text: str
) -> None:
    named, message = refusal(ask(template, messages, **fields))
    assert named == param and text in message


def test_developer_is_system_where_the_template_does_not_know_it(prompt: Callable[..., str]) -> None:
    assert prompt(DEEPSEEK_V3, [{"role": "developer", "content": "French"}, USER]) == prompt(
        DEEPSEEK_V3, [{"role": "system", "content": "French"}, USER]
    )


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning", "thinking"])
def test_reasoning_of_the_history_reaches_the_prompt(prompt: Callable[..., str], name: str) -> None:
    thought = called(arguments="{}") | {name: "easy"}
    assert "<analysis>easy" in prompt(GPT_OSS, [USER, thought, RESULT])
    answer = {"role": "assistant", "content": "4", name: "easy"}
    assert "<think>\neasy\n</think>\n\n4" in prompt(QWEN, [USER, answer])


def test_reasoning_effort_reaches_the_template_as_field_and_as_variable(prompt: Callable[..., str]) -> None:
    effort = {"reasoning_effort": "high"}
    assert "Reasoning: high" in prompt(GPT_OSS, [USER], **effort)
    assert prompt(GPT_OSS, [USER], **effort) == prompt(GPT_OSS, [USER], chat_template_kwargs=effort)
    assert prompt(GPT_OSS, [USER], **effort) == prompt(GPT_OSS, [USER], **effort, chat_template_kwargs=effort)
    assert prompt(QWEN, [USER], chat_template_kwargs={"enable_thinking": False}).endswith("</think>\n\n")


@pytest.mark.parametrize(
    ("part", "text"),
    [
        ({"type": "text", "text": "a"}, "a"),
        ({"type": "input_text", "text": "b"}, "b"),
        ({"type": "output_text", "text": "c"}, "c"),
        ({"type": "refusal", "refusal": "d"}, "d"),
        ({"type": "thinking", "thinking": "e"}, "e"),
        ("f", "f"),
    ],
)
def test_parts_with_texts_are_texts(prompt: Callable[..., str], part: Any, text: str) -> None:
    parts = [part, {"type": "text", "text": "behind"}]
    assert f"user\n{text}\nbehind<|im_end|>" in prompt(CHATML, [{"role": "user", "content": parts}])


def test_a_refusal_is_what_the_model_said(prompt: Callable[..., str]) -> None:
    refused = {"role": "assistant", "content": None, "refusal": "I cannot."}
    assert "assistant\nI cannot.<|im_end|>" in prompt(CHATML, [USER, refused, AGAIN])


def test_a_message_that_is_continued_stays_open(prompt: Callable[..., str], ask: Ask) -> None:
    messages = [USER, {"role": "assistant", "content": "The answer is"}]
    for begun in ({}, {"add_generation_prompt": False}):
        text = prompt(CHATML, messages, continue_final_message=True, **begun)
        assert text.endswith("<|im_start|>assistant\nThe answer is")
    assert not prompt(CHATML, messages, add_generation_prompt=False).endswith("The answer is")
    both = ask(CHATML, messages, continue_final_message=True, add_generation_prompt=True)
    assert refusal(both)[0] == "continue_final_message"


def test_others_are_answered_while_a_template_loops(ask: Ask, client: httpx.Client) -> None:
    ask(LOOPS, [USER])
    with ThreadPoolExecutor(1) as pool:
        looping = pool.submit(ask, LOOPS, [{"role": "user", "content": "now"}])
        for _ in range(5):
            assert client.get("/liveness", timeout=60).status_code == 200
        assert not looping.done()
        assert "took more than 2 s of processor time" in refusal(looping.result())[1]
    assert ask(LOOPS, [{"role": "user", "content": "later"}]).status_code == 200


def test_integers_of_any_size_cross_to_the_template(prompt: Callable[..., str]) -> None:
    arguments = json.dumps({"n": 10**30})
    assert str(10**30) in prompt(GPT_OSS, [USER, called(arguments=arguments), RESULT])


def test_media_are_set_aside_and_keep_their_places() -> None:
    url = {"url": "https://example.com/cat.png"}
    text, image = {"type": "text", "text": "What is"}, {"type": "image_url", "image_url": url}
    body = {
        "messages": [
            {"role": "system", "content": [text, "this?"]},
            {"role": "user", "content": [text, "on", image, {"type": "text", "text": "?"}]},
            {"role": "user", "content": [image]},
        ]
    }
    request = ChatRequest.model_validate_json(json.dumps(body))
    conversation = read_conversation(request, frozenset({"image"}))
    assert [message["content"] for message in conversation.messages] == [
        "What is\nthis?",
        [{"type": "text", "text": "What is\non"}, {"type": "image"}, {"type": "text", "text": "?"}],
        [{"type": "image"}],
    ]
    assert conversation.media == [("image", url, 1, 2), ("image", url, 2, 0)]
    with pytest.raises(InvalidParameter, match="messages.1: content of type 'image_url'"):
        read_conversation(request, frozenset({"audio"}))
