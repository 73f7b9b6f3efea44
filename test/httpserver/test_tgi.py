"""TGI's API: `POST /`, its names for parameters, its answers, and the client that huggingface_hub has for it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from httpserver.conftest import Worker
from huggingface_hub import InferenceClient
from huggingface_hub.errors import OverloadedError, ValidationError
from support.fake_engine import DEFAULT_ANSWER, FakeEngine

from lightllm.protocol.messages import Refused
from lightllm.tokenizer import Tokenizer

PROMPT = "hello"


@pytest.fixture
def hub(client: httpx.Client) -> InferenceClient:
    return InferenceClient(model=str(client.base_url))


@pytest.fixture(scope="module")
def as_upstream(start_worker: Callable[..., Worker]) -> Iterator[httpx.Client]:
    """A server with --use_tgi_api."""
    with httpx.Client(
        base_url=start_worker(worker=1, httpserver_workers=2, use_tgi_api=True).url, timeout=30
    ) as client:
        yield client


def generate(client: httpx.Client, **parameters: Any) -> Any:
    response = client.post("/", json={"inputs": PROMPT, "parameters": parameters})
    assert response.status_code == 200, response.text
    (answer,) = response.json()
    return answer


def events(response: httpx.Response) -> list[dict[str, Any]]:
    assert response.status_code == 200, response.text
    blocks = response.content.split(b"\n\n")
    assert blocks.pop() == b"" and all(block.startswith(b"data:") for block in blocks)
    return [json.loads(block[5:]) for block in blocks]


# -- huggingface_hub's client


def test_the_hub_client_gets_a_text(hub: InferenceClient) -> None:
    assert hub.text_generation(PROMPT, max_new_tokens=50) == DEFAULT_ANSWER


def test_the_hub_client_gets_details(hub: InferenceClient, engine: FakeEngine) -> None:
    answer = hub.text_generation(PROMPT, details=True, seed=7)
    details = answer.details
    assert answer.generated_text == DEFAULT_ANSWER and details is not None
    assert (details.finish_reason, details.seed, details.prefill) == ("eos_token", 7, [])
    assert details.generated_tokens == len(details.tokens)
    assert "".join(token.text for token in details.tokens) == DEFAULT_ANSWER
    assert details.tokens[-1].special and not details.tokens[0].special


def test_the_hub_client_gets_a_stream(hub: InferenceClient) -> None:
    assert "".join(hub.text_generation(PROMPT, stream=True)) == DEFAULT_ANSWER
    *_, last = hub.text_generation(PROMPT, stream=True, details=True)
    assert last.generated_text == DEFAULT_ANSWER and last.details is not None
    assert last.details.finish_reason == "eos_token" and last.details.generated_tokens == last.index


def test_the_hub_client_knows_the_errors(hub: InferenceClient, engine: FakeEngine) -> None:
    with pytest.raises(ValidationError, match="top_p must be"):
        hub.text_generation(PROMPT, top_p=1.5)
    with pytest.raises(ValidationError, match="decoder_input_details is not supported"):
        hub.text_generation(PROMPT, details=True, decoder_input_details=True)
    engine.script.refuse = Refused([], "ServerOverloaded", "4096 requests wait already", retry_after=1)
    with pytest.raises(OverloadedError, match="4096 requests"):
        hub.text_generation(PROMPT)


def test_the_hub_client_is_told_of_the_model(client: httpx.Client) -> None:
    hub = InferenceClient(model=str(client.base_url), provider="hf-inference")
    info = hub.get_endpoint_info()
    assert (info["model_id"], info["max_total_tokens"], info["max_input_tokens"]) == ("tiny", 512, 511)
    assert info["max_best_of"] == 128 and info["max_stop_sequences"] == 64
    assert hub.health_check()


# -- parameters


def test_names_of_tgi_reach_the_router(client: httpx.Client, engine: FakeEngine) -> None:
    generate(client, stop=["a", "b"], grammar={"type": "regex", "value": "[0-9]+"}, truncate=2, watermark=False,
             typical_p=None, top_n_tokens=None, decoder_input_details=False, best_of=None)  # fmt: skip
    request = engine.added[-1]
    assert request.params.stop_sequences == ["a", "b"]
    assert request.params.regular_constraint == "[0-9]+"
    assert len(request.prompt_ids) == 2


def test_it_samples_where_tgi_does(client: httpx.Client, engine: FakeEngine) -> None:
    for parameters, sampled in (
        ({}, False),
        ({"temperature": 1.0, "top_p": None}, False),
        ({"temperature": 0.5, "do_sample": False}, True),
        ({"top_k": 5}, True),
        ({"top_p": 0.9}, True),
        ({"do_sample": True}, True),
    ):
        generate(client, **parameters)
        assert engine.added[-1].params.do_sample is sampled, parameters
    client.post("/generate", json={"inputs": PROMPT, "parameters": {"temperature": 0.5}})
    assert not engine.added[-1].params.do_sample


def test_the_prompt_may_stand_before_the_answer(client: httpx.Client, tokenizer: Tokenizer) -> None:
    assert generate(client, return_full_text=True)["generated_text"] == PROMPT + DEFAULT_ANSWER
    body = {"inputs": PROMPT, "parameters": {"return_full_text": True}}
    stream = events(client.post("/", json=body | {"stream": True}))
    assert stream[-1]["generated_text"] == PROMPT + DEFAULT_ANSWER
    assert "".join(event["token"]["text"] for event in stream) == DEFAULT_ANSWER
    assert client.post("/generate", json=body).json()["generated_text"] == [PROMPT + DEFAULT_ANSWER]
    ids = body | {"inputs": tokenizer.encode(PROMPT, add_special_tokens=False)}
    assert client.post("/", json=ids).json()[0]["generated_text"] == PROMPT + DEFAULT_ANSWER
    assert client.post("/generate_stream", json=body).status_code == 400


def test_details_are_return_details_on_lightllms_own_route(client: httpx.Client) -> None:
    answer = client.post("/generate", json={"inputs": PROMPT, "parameters": {"details": True}}).json()
    assert len(answer["tokens"]) == answer["count_output_tokens"]


# -- answers


def test_the_likeliest_of_several_answers_counts(client: httpx.Client) -> None:
    answer = generate(client, best_of=3, do_sample=True, details=True)
    others = answer["details"]["best_of_sequences"]
    assert len(others) == 2
    best, *rest = [sum(token["logprob"] for token in one["tokens"]) / len(one["tokens"])
                   for one in (answer["details"], *others)]  # fmt: skip
    assert best >= max(rest)


def test_a_finish_says_why(client: httpx.Client, engine: FakeEngine) -> None:
    assert generate(client, details=True, max_new_tokens=2)["details"]["finish_reason"] == "length"
    engine.script.eos = False
    assert generate(client, details=True)["details"]["finish_reason"] == "stop_sequence"


def test_a_stream_has_an_event_a_token(client: httpx.Client, engine: FakeEngine) -> None:
    for alone in (False, True):
        engine.script.finish_alone = alone
        stream = events(client.post("/", json={"inputs": PROMPT, "stream": True}))
        assert [event["index"] for event in stream[:-1]] == [*range(1, len(stream))]
        assert [event["finished"] for event in stream] == [False] * (len(stream) - 1) + [True]
        assert all(event["generated_text"] is None and event["details"] is None for event in stream[:-1])
        text = "".join(event["token"]["text"] for event in stream)
        assert text == stream[-1]["generated_text"]
        assert set(stream[0]["token"]) >= {"id", "text", "logprob", "special"}


def test_errors_have_tgis_shape(client: httpx.Client, engine: FakeEngine) -> None:
    for body in ({"inputs": PROMPT, "parameters": {"top_k": 0}}, {"inputs": 5}, {}):
        response = client.post("/", json=body)
        assert 400 <= response.status_code < 500
        assert set(response.json()) == {"error", "error_type"}
        assert response.json()["error_type"] == "validation"
    engine.script.finish_error = "the device is lost"
    engine.script.error_after = 2
    last = events(client.post("/", json={"inputs": PROMPT, "stream": True}))[-1]
    assert last == {"error": "the device is lost", "error_type": "generation"}


# -- --use_tgi_api


def test_generate_may_speak_as_tgi(as_upstream: httpx.Client, engine: FakeEngine) -> None:
    body = {"inputs": PROMPT, "parameters": {"details": True}}
    answer = as_upstream.post("/generate", json=body).json()
    assert answer["generated_text"] == DEFAULT_ANSWER
    details = answer["details"]
    assert details["prompt_tokens"] == len(engine.added[-1].prompt_ids)
    assert len(details["tokens"]) == details["generated_tokens"]
    stream = events(as_upstream.post("/generate_stream", json={"inputs": PROMPT}))
    assert stream[-1]["generated_text"] == DEFAULT_ANSWER and stream[-1]["finished"]
    assert as_upstream.post("/", json=body).json()[0]["generated_text"] == DEFAULT_ANSWER
