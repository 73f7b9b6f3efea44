"""Numbers and switches as many clients write them: 5.0, "5", "true". What was meant is used; what has no meaning is refused."""

from __future__ import annotations

from typing import Any

import httpx
import openai
import pytest
from support.fake_engine import FakeEngine

from lightllm.sampling_params import SamplingParams

NATIVE, OPENAI = ("/generate",), ("/v1/completions", "/v1/chat/completions")
LENGTH = {
    "/generate": "max_new_tokens",
    "/v1/completions": "max_tokens",
    "/v1/chat/completions": "max_tokens",
}


def ask(client: httpx.Client, path: str, **fields: Any) -> httpx.Response:
    if path in NATIVE:
        return client.post(path, json={"inputs": "x", "parameters": fields})
    start: dict[str, Any] = (
        {"prompt": "x"} if path == OPENAI[0] else {"messages": [{"role": "user", "content": "x"}]}
    )
    return client.post(path, json=start | fields)


def used(client: httpx.Client, engine: FakeEngine, path: str, **fields: Any) -> SamplingParams:
    response = ask(client, path, **fields)
    assert response.status_code == 200, response.text
    return engine.added[-1].params


@pytest.mark.parametrize("path", LENGTH)
@pytest.mark.parametrize("value", [5, 5.0, "5", "5.0", " 5 "])
def test_an_integer_in_any_writing(client: httpx.Client, engine: FakeEngine, path: str, value: Any) -> None:
    assert used(client, engine, path, **{LENGTH[path]: value}).max_new_tokens == 5
    params = used(client, engine, path, top_k=value, seed=value)
    assert (params.top_k, params.seed) == (5, 5) and type(params.top_k) is int


@pytest.mark.parametrize("path", LENGTH)
@pytest.mark.parametrize("value", [0.5, "0.5", "5e-1"])
def test_a_number_in_any_writing(client: httpx.Client, engine: FakeEngine, path: str, value: Any) -> None:
    params = used(client, engine, path, temperature=value, top_p=value, min_p=value, logit_bias={"7": value})
    assert (params.temperature, params.top_p, params.min_p, params.logit_bias) == (0.5, 0.5, 0.5, {7: 0.5})


@pytest.mark.parametrize("path", LENGTH)
@pytest.mark.parametrize(
    ("value", "meant"), [("true", True), ("True", True), (1, True), ("false", False), (0, False)]
)
def test_a_switch_in_any_writing(
    client: httpx.Client, engine: FakeEngine, path: str, value: Any, meant: bool
) -> None:
    assert used(client, engine, path, ignore_eos=value).ignore_eos is meant
    assert used(client, engine, path, skip_special_tokens=value).skip_special_tokens is meant


@pytest.mark.parametrize("path", OPENAI)
def test_a_stream_in_any_writing(client: httpx.Client, engine: FakeEngine, path: str) -> None:
    for value, stream in (("true", True), (1, True), ("false", False), ("0", False)):
        kind = ask(client, path, stream=value).headers["content-type"]
        assert kind.startswith("text/event-stream" if stream else "application/json")
    body = ask(client, path, stream="true", stream_options={"include_usage": "true"}, max_tokens="2").text
    assert '"completion_tokens":2' in body


def test_a_decay_in_any_writing(client: httpx.Client, engine: FakeEngine) -> None:
    for value in ([3, 1.5], [3.0, "1.5"], ["3", 1.5]):
        params = used(client, engine, "/generate", exponential_decay_length_penalty=value)
        assert params.exponential_decay_length_penalty == (3, 1.5)
    for value in ([3.5, 1.5], ["x", 1.5], [3, "x"], [3, "nan"], [None, 1], [3, []]):
        response = ask(client, "/generate", exponential_decay_length_penalty=value)
        assert response.status_code == 400 and "exponential_decay_length_penalty" in response.text


@pytest.mark.parametrize("path", LENGTH)
@pytest.mark.parametrize(
    ("field", "value"),
    [("top_k", 5.5), ("top_k", "five"), ("top_k", ""), ("top_k", [5]), ("temperature", "nan"), ("temperature", "-inf"),
     ("temperature", {}), ("ignore_eos", "perhaps"), ("ignore_eos", 2), ("ignore_eos", "")],
)  # fmt: skip
def test_what_means_nothing_is_refused(
    client: httpx.Client, engine: FakeEngine, path: str, field: str, value: Any
) -> None:
    response = ask(client, path, **{field: value})
    assert response.status_code == (422 if path in NATIVE else 400)
    assert field in response.text and engine.added == []


def test_texts_and_token_ids_are_what_they_are(client: httpx.Client, engine: FakeEngine) -> None:
    """A list of texts that look like numbers is no prompt of token ids."""
    assert ask(client, "/v1/completions", prompt=["12"]).status_code == 200
    assert len(engine.added[-1].prompt_ids) > 0 and list(engine.added[-1].prompt_ids) != [12]
    assert client.post("/generate", json={"inputs": ["12"]}).status_code == 422
    assert ask(client, "/v1/completions", prompt=["12"], stop=5).status_code == 400


def test_template_variables_keep_their_types(client: httpx.Client) -> None:
    from lightllm.httpserver.openai.models import ChatRequest

    values = {"a": "true", "b": True, "c": 1, "d": 1.0, "e": "5"}
    kept = ChatRequest.model_validate({"messages": [{"role": "user"}], "chat_template_kwargs": values})
    assert kept.chat_template_kwargs == values
    assert [type(value) for value in (kept.chat_template_kwargs or {}).values()] == [
        str,
        bool,
        int,
        float,
        str,
    ]


@pytest.mark.parametrize(
    ("path", "body", "words"),
    [
        ("/v1/completions", {"prompt": [1] * 600}, "you requested 601 tokens (600 in the prompt, 1 in the completion)"),
        ("/v1/completions", {"prompt": [1], "max_tokens": 600}, "601 tokens (1 in the prompt, 600 in the completion)"),
        ("/v1/completions", {"prompt": "hello " * 100_000}, "your prompt of 600000 characters resulted in more"),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "hello " * 2000}]}, "in the messages, 1 in"),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "hello " * 100_000}]}, "your messages of 6"),
    ],
)  # fmt: skip
def test_clients_know_an_overflow_by_its_words(
    client: httpx.Client, engine: FakeEngine, path: str, body: dict[str, Any], words: str
) -> None:
    response = client.post(path, json=body)
    error = response.json()["error"]
    assert response.status_code == 400 and error["code"] == "context_length_exceeded"
    assert error["message"].startswith("This model's maximum context length is 512 tokens. However, ")
    assert words in error["message"] and engine.added == []
    # the openai client shows the message alone, in which langchain looks for the code
    assert "context_length_exceeded" in error["message"]


def test_the_native_api_keeps_lightllms_words(client: httpx.Client, engine: FakeEngine) -> None:
    response = client.post("/generate", json={"inputs": [1] * 600})
    assert response.json()["message"] == "the input prompt token len 600 + max_new_tokens 1 > 512"


def test_the_official_client_sees_a_bad_request(worker: Any, engine: FakeEngine) -> None:
    """And none that it cannot process (422), which nobody catches."""
    with openai.OpenAI(base_url=f"{worker.url}/v1", api_key="none", max_retries=0) as api:
        for wrong in ({"max_tokens": "many"}, {"stop": 5}, {"logit_bias": 5}, {"extra_body": {"min_p": "x"}}):
            with pytest.raises(openai.BadRequestError) as error:
                api.completions.create(model="tiny", prompt="x", **wrong)  # type: ignore[call-overload]
            assert error.value.code == "malformed_body" and error.value.type == "invalid_request_error"
            assert error.value.param in ("max_tokens", "stop", "logit_bias", "min_p")
