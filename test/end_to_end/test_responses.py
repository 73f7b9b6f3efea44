"""`/v1/responses` as the unmodified openai client meets it: a real server with two Http workers and the demo model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import openai
import pytest
from pydantic import BaseModel
from support.server import LightLLMServer

MODEL = "lightllm-demo"
QUESTION = "What is AI?"


class Person(BaseModel):
    name: Literal["Ada", "Alan"]
    lives: bool


@pytest.fixture(scope="module")
def clients() -> Iterator[list[openai.OpenAI]]:
    """Each with a connection of its own, so that both workers answer."""
    with LightLLMServer(
        ["--data_type", "fp32", "--httpserver_workers", "2", "--tool_call_parser", "hermes"]
    ) as server:
        own = [openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) for _ in range(4)]
        yield own
        for client in own:
            client.close()


def test_an_answer_whole_and_streamed_and_its_way_through_the_store(clients: list[openai.OpenAI]) -> None:
    whole = clients[0].responses.create(model=MODEL, input=QUESTION, temperature=0, max_output_tokens=40)
    assert whole.status == "completed" and "intelligence" in whole.output_text
    with clients[1].responses.stream(
        model=MODEL, input=QUESTION, temperature=0, max_output_tokens=40
    ) as stream:
        text = "".join(event.delta for event in stream if event.type == "response.output_text.delta")
        final = stream.get_final_response()
    assert text == final.output_text == whole.output_text and final.usage is not None
    for client in clients:
        assert client.responses.retrieve(whole.id).output_text == whole.output_text
        (item,) = client.responses.input_items.list(whole.id)
        assert item.type == "message" and item.content[0].text == QUESTION  # type: ignore[union-attr]
    second = clients[2].responses.create(
        model=MODEL, input=QUESTION, previous_response_id=whole.id, temperature=0, max_output_tokens=40
    )
    assert second.usage is not None and whole.usage is not None
    # the earlier turn's tokens are in the prefix cache
    assert second.usage.input_tokens_details.cached_tokens >= whole.usage.input_tokens - 1
    clients[3].responses.delete(whole.id)
    for client in clients:
        with pytest.raises(openai.NotFoundError):
            client.responses.retrieve(whole.id)


def test_a_parsed_answer_fits_its_model(clients: list[openai.OpenAI]) -> None:
    response = clients[0].responses.parse(model=MODEL, input="Who?", text_format=Person, temperature=1.5)
    assert isinstance(response.output_parsed, Person)


def test_a_long_answer_in_the_background_is_cancelled_from_any_connection(
    clients: list[openai.OpenAI],
) -> None:
    ignore_eos: Any = {"extra_body": {"ignore_eos": True}}
    begun = [
        client.responses.create(
            model=MODEL, input=QUESTION, background=True, max_output_tokens=1500, **ignore_eos
        )
        for client in clients
    ]
    for client, response in zip(reversed(clients), begun, strict=True):
        assert client.responses.cancel(response.id).status in ("cancelled", "incomplete")
