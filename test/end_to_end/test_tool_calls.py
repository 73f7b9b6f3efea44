"""Demanded calls as clients meet them: the demo model, which knows nothing of such tools, at a high temperature behind real HTTP and the
openai client. They cannot fail."""

from __future__ import annotations

import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jsonschema_rs
import openai
import pytest
from support.chat_templates import QWEN
from support.random_schemas import names_are_few, random_schema, value_of
from support.server import LightLLMServer

FORMS = (
    "hermes",
    *(pytest.param(form, marks=pytest.mark.slow) for form in ("llama3_json", "mistral", "none")),
)
"""Of which the schema bounds everything that is written, so that most answers end."""
WHY_NOT = ("nothing can match", "no finite value", "Unsatisfiable schema")
TURNS: list[Any] = [{"role": "user", "content": "What is AI?"}]


@pytest.fixture(scope="module", params=FORMS)
def api(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[openai.OpenAI]:
    template: Path = tmp_path_factory.mktemp("template") / "tools.jinja"
    template.write_text(QWEN)
    options = ["--chat_template", str(template), "--tool_call_parser", request.param, "--data_type", "fp32"]
    with (
        LightLLMServer([*options, "--max_total_token_num", "30000"]) as server,
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as api,
    ):
        yield api


def tool(name: str, dice: random.Random) -> dict[str, Any]:
    """With a schema of which no part may have any name at all: the model writes such ones for ever."""
    while not names_are_few(inner := random_schema(dice)):
        pass
    definitions = {"$defs": inner.pop("$defs")} if "$defs" in inner else {}
    schema = {
        "type": "object", "properties": {"a": inner, "b": {"type": "string", "maxLength": 5}}, "required": ["b"],
        "additionalProperties": False, **definitions,
    }  # fmt: skip
    return {"type": "function", "function": {"name": name, "parameters": schema}}


def test_demanded_calls_fit_their_schemas(api: openai.OpenAI) -> None:
    dice = random.Random(17)
    offered = [[tool(f"f{number}", dice), tool("other", dice)] for number in range(16)]

    def ask(number: int) -> int:
        tools = offered[number]
        named = {"type": "function", "function": {"name": "other"}}
        choice: Any = named if number % 2 else "required"
        fields = {
            "model": "lightllm-demo",
            "messages": TURNS,
            "max_tokens": 400,
            "temperature": 1.5,
            "seed": number,
        }
        try:
            answer = api.chat.completions.create(
                **fields,
                tools=tools,
                tool_choice=choice,
                parallel_tool_calls=number % 3 == 0,  # type: ignore[call-overload]
            )
        except openai.BadRequestError as error:
            assert any(why in str(error) for why in WHY_NOT), error
            return 0
        message, reason = answer.choices[0].message, answer.choices[0].finish_reason
        if reason == "length":
            return 0
        assert reason == "tool_calls" and not message.content
        assert len(message.tool_calls) == 1 or number % 3 == 0
        for call in message.tool_calls:
            assert call.function.name == "other" or (
                choice == "required" and call.function.name == f"f{number}"
            )
            schema = next(
                one["function"]["parameters"]
                for one in tools
                if one["function"]["name"] == call.function.name
            )
            assert jsonschema_rs.is_valid(schema, value_of(call.function.arguments)), (schema, call)
        return 1

    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(ask, range(16))) > 5
