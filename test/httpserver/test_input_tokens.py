"""`/v1/responses/input_tokens`, with the openai client."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from support.agents import tokenizer_with, tokenizing
from support.chat_templates import QWEN
from support.fake_engine import FakeEngine

from lightllm.parsers.chat_format import ChatFormat
from lightllm.parsers.families import HERMES

TOOLS: list[Any] = [{"type": "function", "name": "get_weather", "parameters": {"type": "object"}}]


@pytest.fixture(scope="module")
def worker(start_worker: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    folder: Path = tmp_path_factory.mktemp("qwen")
    started = start_worker(worker=13, chat_format=ChatFormat(HERMES))
    with tokenizer_with(QWEN, folder) as qwen, tokenizing(started, qwen) as worker:
        yield worker


@pytest.fixture
def api(worker: Any, engine: FakeEngine) -> Iterator[openai.OpenAI]:
    engine.ready(max_req_total_len=2048, slots_total=4096)
    with openai.OpenAI(base_url=f"{worker.url}/v1", api_key="none", max_retries=0) as api:
        yield api


@pytest.mark.parametrize(
    "fields",
    [
        {"input": "one"},
        {"input": [{"role": "user", "content": "two"}], "instructions": "one", "tools": TOOLS, "tool_choice": "none"},
        {"input": "two", "previous_response_id": ...},
        {"input": [{"role": "user", "content": "one " * 1500}, {"role": "user", "content": "two"}], "truncation": "auto"},
    ],
    ids=["text", "tools", "following", "truncated"],
)  # fmt: skip
def test_as_many_are_counted_as_the_response_has(api: openai.OpenAI, fields: dict[str, Any]) -> None:
    if "previous_response_id" in fields:
        fields = fields | {"previous_response_id": api.responses.create(model="tiny", input="one").id}
    counted = api.responses.input_tokens.count(model="tiny", **fields)
    assert counted.object == "response.input_tokens"
    usage = api.responses.create(model="tiny", **fields).usage
    assert usage is not None and counted.input_tokens == usage.input_tokens


def test_nothing_is_computed_and_an_input_may_be_too_long(api: openai.OpenAI, engine: FakeEngine) -> None:
    before = len(engine.added)
    assert api.responses.input_tokens.count(input="one " * 5000).input_tokens > 2048
    assert len(engine.added) == before


def test_a_response_that_is_not_kept_cannot_be_followed(api: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as refusal:
        api.responses.input_tokens.count(input="one", previous_response_id="resp_none")
    assert refusal.value.code == "previous_response_not_found"
