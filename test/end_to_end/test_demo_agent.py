"""An agent as people write it with the unmodified openai client, against a server with the demo model: it offers a function that
adds, the model calls it, the agent computes what the call asks for, and the model answers with that. And thinking on request."""

from __future__ import annotations

import json
import random
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from support.server import LightLLMServer

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from demo_model.calling import AddingTool, definition, draw_numbers, draw_tool  # noqa: E402
from demo_model.thinking import thinking_sum  # noqa: E402

PAGE = Path(__file__).resolve().parents[2] / "docs" / "demo_model.md"
MODEL: Any = {"model": "lightllm-demo", "temperature": 0}
SEED = 12
"""Of the numbers and the names, which are among those that were kept out of the training text."""


@pytest.fixture(scope="module")
def server() -> Iterator[LightLLMServer]:
    with LightLLMServer(["--data_type", "fp32", "--max_total_token_num", "20000"]) as server:
        yield server


@pytest.fixture(scope="module")
def client(server: LightLLMServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


class Agent:
    """Asks until the model calls no more; `calls` are the arguments of the calls so far."""

    def __init__(self, client: openai.OpenAI, tool: AddingTool, stream: bool, **options: Any) -> None:
        self._client, self._tool, self._stream, self._options = client, tool, stream, options
        properties = {parameter: {"type": "integer"} for parameter in tool.parameters}
        self._offer: Any = [definition(tool.name, "Add two numbers.", properties)]
        self.calls: list[dict[str, int]] = []

    def answer(self, question: str) -> str:
        messages: list[Any] = [{"role": "user", "content": question}]
        for _ in range(3):
            message = self._ask(messages)
            if not message.get("tool_calls"):
                return str(message["content"])
            messages.append(message)
            for call in message["tool_calls"]:
                result = self._call(call["function"]["name"], json.loads(call["function"]["arguments"]))
                messages.append({"role": "tool", "tool_call_id": call["id"], "content": str(result)})
        raise AssertionError(f"no end: {messages}")

    def _ask(self, messages: list[Any]) -> dict[str, Any]:
        fields: Any = (
            {"messages": messages, "tools": self._offer, "tool_choice": "auto"} | MODEL | self._options
        )
        if not self._stream:
            choice = self._client.chat.completions.create(**fields).choices[0]
        else:
            with self._client.chat.completions.stream(**fields) as stream:
                choice = stream.get_final_completion().choices[0]
        assert choice.finish_reason == ("tool_calls" if choice.message.tool_calls else "stop")
        return choice.message.model_dump(exclude_none=True, exclude={"parsed"})

    def _call(self, name: str, arguments: dict[str, int]) -> int:
        assert name == self._tool.name and tuple(arguments) == self._tool.parameters
        self.calls.append(arguments)
        return sum(arguments.values())


def cases(count: int) -> list[tuple[AddingTool, int, int]]:
    dice = random.Random(SEED)
    return [(draw_tool(dice, held_out=True), *draw_numbers(dice, held_out=True)) for _ in range(count)]


def test_the_parsers_are_found_by_the_template(server: LightLLMServer) -> None:
    server.wait_for("tool calls: hermes, by the chat template; reasoning: think, by the chat template")


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize(("tool", "a", "b"), cases(4))
def test_an_agent_ends_with_the_right_sum(
    client: openai.OpenAI, tool: AddingTool, a: int, b: int, stream: bool
) -> None:
    agent = Agent(client, tool, stream)
    answer = agent.answer(f"What is {a} plus {b}?")
    assert [tuple(call.values()) for call in agent.calls] == [(a, b)]
    assert str(a + b) in answer


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_an_agent_that_lets_the_model_think_gets_the_same_sum(client: openai.OpenAI, stream: bool) -> None:
    (tool, a, b), *_ = cases(1)
    agent = Agent(client, tool, stream, reasoning_effort="low")
    answer = agent.answer(f"What is {a} plus {b}?")
    assert agent.calls and str(a + b) in answer


def test_the_example_of_the_page(server: LightLLMServer) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    (wanted,) = re.findall(r"print\(message.content\)  # (.*)", code)
    code = code.replace("http://127.0.0.1:8080", server.url)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == wanted, done.stderr


def test_what_the_function_is_not_for_is_answered_without_it(client: openai.OpenAI) -> None:
    agent = Agent(client, AddingTool("add", ("a", "b")), stream=False)
    assert "Paris" in agent.answer("What is the capital of France?")
    assert not agent.calls


ASKING: tuple[dict[str, Any], ...] = (
    {"reasoning_effort": "medium"},
    {"extra_body": {"enable_thinking": True}},
    {"extra_body": {"chat_template_kwargs": {"enable_thinking": True}}},
)


@pytest.mark.parametrize(
    "fields", ASKING, ids=["reasoning_effort", "enable_thinking", "chat_template_kwargs"]
)
def test_asked_to_think_it_adds_what_it_has_not_learned_by_heart(
    client: openai.OpenAI, fields: dict[str, Any]
) -> None:
    exchange = thinking_sum(random.Random(SEED), held_out=True)
    messages: Any = [{"role": "user", "content": exchange.question}]
    answer = client.chat.completions.create(**MODEL, messages=messages, **fields)
    message: Any = answer.choices[0].message
    assert message.reasoning_content == exchange.thought and message.content == exchange.answer
    assert answer.usage is not None and answer.usage.completion_tokens_details is not None
    assert 0 < (answer.usage.completion_tokens_details.reasoning_tokens or 0) < answer.usage.completion_tokens


@pytest.mark.parametrize("fields", [{}, {"reasoning_effort": "none"}], ids=["not asked", "none"])
def test_not_asked_to_think_it_answers_at_once(client: openai.OpenAI, fields: dict[str, Any]) -> None:
    messages: Any = [{"role": "user", "content": "What is 12 plus 7?"}]
    message: Any = client.chat.completions.create(**MODEL, messages=messages, **fields).choices[0].message
    assert message.content == "12+7=19" and not getattr(message, "reasoning_content", None)
