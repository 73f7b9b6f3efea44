"""`text_offset` of completions: the characters before a token, whatever is held back and however it is sent."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import accumulate
from typing import Any

import httpx
import pytest
from support.fake_engine import FakeEngine
from support.http_client import http_client
from support.sse import chunks

from lightllm.tokenizer import Tokenizer

ANSWER = "Größe<|user|> 🙂 of one two"


@pytest.fixture(scope="module", params=[1, 4])
def interval_client(
    request: pytest.FixtureRequest, worker: Any, start_worker: Callable[..., Any]
) -> Iterator[httpx.Client]:
    """Of a worker with that `--stream_interval`."""
    if request.param > 1:
        worker = start_worker(worker=1, httpserver_workers=2, stream_interval=request.param)
    with http_client(worker.url) as client:
        yield client


def offsets(client: httpx.Client, **fields: Any) -> tuple[str, list[int], list[str]]:
    """(text, text_offset, tokens) of a completion."""
    body = {"prompt": "Once upon", "max_tokens": 60, "logprobs": 0} | fields
    response = client.post("/v1/completions", json=body)
    text, found, tokens = "", [], []
    for event in chunks(response) if fields.get("stream") else [response.json()]:
        (choice,) = event["choices"]
        text += choice["text"]
        if choice["logprobs"]:
            found += choice["logprobs"]["text_offset"]
            tokens += choice["logprobs"]["tokens"]
    return text, found, tokens


@pytest.mark.parametrize("shown", [False, True])
@pytest.mark.parametrize("echo", [False, True])
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("held_back", [0, 1, 5])
def test_offsets_are_the_characters_of_the_text_before_each_token(
    interval_client: httpx.Client, engine: FakeEngine, tokenizer: Tokenizer,
    held_back: int, stream: bool, echo: bool, shown: bool,
) -> None:  # fmt: skip
    engine.script.answer, engine.script.held_back = ANSWER, held_back
    fields = {"echo": echo, "stream": stream, "skip_special_tokens": not shown}
    text, found, _ = offsets(interval_client, **fields)
    start = len("Once upon") if echo else 0
    whole = ANSWER if shown else ANSWER.replace("<|user|>", "")
    assert text[start:].removesuffix("</s>") == whole
    ids = tokenizer.encode(ANSWER, add_special_tokens=False)
    decode = tokenizer.stream(tokenizer.encode("Once upon"), not shown)
    expected = [*accumulate((len(decode.push(i)) for i in ids), initial=start)]
    assert found[-len(expected) :] == expected
    assert expected[-1] == start + len(whole)


def test_each_answer_has_offsets_of_its_own(client: httpx.Client, engine: FakeEngine) -> None:
    engine.script.held_back = 3
    body = {"prompt": ["Once", "upon"], "n": 2, "max_tokens": 6, "logprobs": 0}
    whole = client.post("/v1/completions", json=body).json()["choices"]
    streamed: dict[int, list[int]] = {}
    for event in chunks(client.post("/v1/completions", json={**body, "stream": True})):
        (choice,) = event["choices"]
        if choice["logprobs"]:
            streamed.setdefault(choice["index"], []).extend(choice["logprobs"]["text_offset"])
    assert len({tuple(choice["logprobs"]["text_offset"]) for choice in whole}) == 1
    assert streamed == {choice["index"]: choice["logprobs"]["text_offset"] for choice in whole}
    assert streamed[0][1] > 0, "the second token begins behind the first, though no text had been sent"
