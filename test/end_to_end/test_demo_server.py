"""The whole product as a newcomer meets it: the demo model behind real HTTP, with curl's bytes and the openai client."""

from __future__ import annotations

import gzip
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import openai
import pytest
from huggingface_hub import InferenceClient
from support.server import LightLLMServer
from support.sse import chunks


@pytest.fixture(scope="module")
def traces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("traces")


@pytest.fixture(scope="module")
def server(traces: Path) -> Iterator[LightLLMServer]:
    options = ["--max_total_token_num", "20000", "--model_name", "demo", "--httpserver_workers", "2"]
    with LightLLMServer([*options, "--profile_dir", str(traces), "--enable_nvtx"]) as server:
        server.wait_ready()
        yield server


@pytest.fixture(scope="module")
def client(server: LightLLMServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def test_the_curl_of_the_readme(server: LightLLMServer) -> None:
    body = {"inputs": "What is AI?", "parameters": {"max_new_tokens": 17, "frequency_penalty": 1}}
    response = httpx.post(f"{server.url}/generate", json=body)
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("application/json")
    answer = response.json()
    assert "intelligence" in answer["generated_text"][0]
    assert 1 <= answer["count_output_tokens"] <= 17


def test_chat_obeys_its_template_and_ends_with_eos(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="demo", messages=[{"role": "user", "content": "What is 2+3?"}], temperature=0
    )
    assert "5" in (answer.choices[0].message.content or "")
    assert answer.choices[0].finish_reason == "stop"
    assert (
        answer.usage is not None
        and answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    )


def test_streamed_chat_equals_the_whole_answer(client: openai.OpenAI) -> None:
    messages = [{"role": "user", "content": "Count from 1 to 10."}]
    whole = client.chat.completions.create(model="demo", messages=messages, temperature=0)  # type: ignore[arg-type]
    pieces, usage = [], None
    for chunk in client.chat.completions.create(
        model="demo",
        messages=messages,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},  # type: ignore[arg-type]
    ):
        usage = chunk.usage or usage
        pieces += [choice.delta.content or "" for choice in chunk.choices]
    assert "".join(pieces) == whole.choices[0].message.content
    assert len(pieces) > 5
    assert (
        usage is not None
        and whole.usage is not None
        and usage.completion_tokens == whole.usage.completion_tokens
    )


def test_stop_string_across_token_borders(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="demo",
        messages=[{"role": "user", "content": "Count from 1 to 10."}],
        temperature=0,
        stop=["4, 5"],
    )
    text = answer.choices[0].message.content or ""
    assert answer.choices[0].finish_reason == "stop"
    assert "3" in text and "4, 5" not in text and "6" not in text


@pytest.mark.parametrize("stop", ["</s>", "</s></s>", "</", "/s"])
@pytest.mark.parametrize("stream", [False, True])
def test_a_special_token_that_is_not_shown_is_a_stop_string_like_any_other(
    server: LightLLMServer, stop: str, stream: bool
) -> None:
    count = 2 if stop == "</s></s>" else 1
    shared = {"ignore_eos": True, "logit_bias": {"2": 100}}
    body = {"prompt": "hi", "max_tokens": 8, "stop": [stop], "stream": stream, **shared}
    response = httpx.post(f"{server.url}/v1/completions", json=body)
    for event in chunks(response)[-1:] if stream else [response.json()]:
        assert event["choices"][0]["finish_reason"] == "stop" and event["choices"][0]["text"] == ""
        assert stream or event["usage"]["completion_tokens"] == count
    native = {"inputs": "hi", "parameters": {"max_new_tokens": 8, "stop_sequences": [stop], **shared}}
    answer = httpx.post(f"{server.url}/generate", json=native).json()
    assert (answer["generated_text"], answer["finish_reason"]) == ([""], "stop")
    assert answer["count_output_tokens"] == count


def test_text_held_back_for_a_stop_string_does_not_move_the_offsets(server: LightLLMServer) -> None:
    def offsets(**fields: object) -> list[int]:
        body = {"prompt": "What is AI?", "max_tokens": 12, "temperature": 0, "logprobs": 1, **fields}
        response = httpx.post(f"{server.url}/v1/completions", json=body)
        found: list[int] = []
        for event in chunks(response) if fields.get("stream") else [response.json()]:
            found += (event["choices"][0]["logprobs"] or {}).get("text_offset", [])
        return found

    plain = offsets()
    assert plain[:2] == [0, 3] and plain == sorted(set(plain))
    for stop in (" AI is arzzz", " is\x00", " AI is artificial intelligence: machines!"):
        assert offsets(stop=[stop]) == offsets(stop=[stop], stream=True) == plain
        assert offsets(stop=[stop], echo=True) == offsets(echo=True)


def test_same_seed_same_answer_alone_and_among_others(client: openai.OpenAI, server: LightLLMServer) -> None:
    from concurrent.futures import ThreadPoolExecutor

    def ask(seed: int) -> str:
        answer = client.completions.create(
            model="demo",
            prompt="Tell me",
            max_tokens=24,
            temperature=1.0,
            seed=seed,
            extra_body={"ignore_eos": True},
        )
        return answer.choices[0].text

    alone = ask(7)
    with ThreadPoolExecutor(16) as pool:
        together = list(pool.map(ask, [1, 2, 3, 7, 5, 6, 4, 8, 7, 9, 10, 11, 12, 13, 14, 15]))
    assert together[3] == together[8] == alone
    assert len(set(together)) > 8


def test_logprobs_and_echo(client: openai.OpenAI) -> None:
    answer = client.completions.create(
        model="demo", prompt="What is AI?", max_tokens=4, temperature=0, logprobs=2, echo=True
    )
    choice = answer.choices[0]
    assert choice.text.startswith("What is AI?")
    assert choice.logprobs is not None and choice.logprobs.token_logprobs is not None
    assert choice.logprobs.token_logprobs[0] is None
    assert all(value <= 0 for value in choice.logprobs.token_logprobs[1:])
    assert answer.usage is not None
    assert len(choice.logprobs.tokens or []) == answer.usage.total_tokens


def test_errors_are_typed_as_the_client_expects(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="nobody"):
        client.models.retrieve("nobody")
    with pytest.raises(openai.BadRequestError, match="temperature"):
        client.chat.completions.create(
            model="demo", messages=[{"role": "user", "content": "hi"}], temperature=-1
        )


def test_a_client_that_leaves_frees_its_slots(server: LightLLMServer) -> None:
    body = {"inputs": "Tell me a story.", "parameters": {"max_new_tokens": 1500, "ignore_eos": True}}
    with httpx.stream("POST", f"{server.url}/generate_stream", json=body) as stream:
        lines = stream.iter_lines()  # kept: the connection closes with its iterator
        next(lines)
        wait_for_load(server, lambda load: load > 0)  # the Router publishes its state some times a second
    wait_for_load(server, lambda load: load == 0)


def wait_for_load(server: LightLLMServer, wanted: Callable[[float], bool]) -> None:
    end = time.monotonic() + 5
    while not wanted(load := httpx.get(f"{server.url}/token_load").json()["current_load"]):
        assert time.monotonic() < end, f"the load is still {load}"
        time.sleep(0.02)


def test_generate_stream_frames(server: LightLLMServer) -> None:
    body = {"inputs": "What is AI?", "parameters": {"max_new_tokens": 5, "ignore_eos": True}}
    raw = httpx.post(f"{server.url}/generate_stream", json=body).content
    events = raw.split(b"\n\n")
    assert events[-1] == b"" and all(event.startswith(b"data:{") for event in events[:-1])
    decoded = [json.loads(event[5:]) for event in events[:-1]]
    assert [event["finished"] for event in decoded] == [False] * 4 + [True]
    assert decoded[-1]["finish_reason"] == "length" and decoded[-1]["token"]["count_output_tokens"] == 5


def test_a_profile_of_the_running_server_is_written_where_the_answer_says(
    server: LightLLMServer, traces: Path
) -> None:
    assert httpx.post(f"{server.url}/stop_profile").status_code == 400
    for rounds in (0, 201, -1):
        refused = httpx.post(f"{server.url}/start_profile", json={"num_steps": rounds})
        assert refused.status_code == 400 and refused.json()["param"] == "num_steps"
    assert httpx.post(f"{server.url}/start_profile", timeout=60).json() == {"message": "Ok"}
    again = httpx.post(f"{server.url}/start_profile")
    assert again.status_code == 400 and "running already" in again.json()["message"]
    assert len(httpx.post(f"{server.url}/stop_profile", timeout=60).json()["traces"]) == 1
    assert httpx.post(f"{server.url}/start_profile", json={"num_steps": 2}, timeout=60).status_code == 200
    body = {"inputs": "What is AI?", "parameters": {"max_new_tokens": 30, "ignore_eos": True}}
    assert httpx.post(f"{server.url}/generate", json=body).status_code == 200
    answer = httpx.post(f"{server.url}/stop_profile", timeout=60).json()
    (trace,) = (Path(path) for path in answer["traces"])
    assert trace.is_relative_to(traces)
    with gzip.open(trace) as file:
        events = json.load(file)["traceEvents"]
    assert any(str(event.get("name")).startswith("aten::") for event in events)
    rounds = [event for event in events if event.get("name") in ("prefill_batch", "decode_batch")]
    assert len(rounds) == 2


def test_bad_words_do_not_come(server: LightLLMServer) -> None:
    def answer(**parameters: object) -> str:
        body = {"inputs": "What is AI?", "parameters": {"max_new_tokens": 60} | parameters}
        response = httpx.post(f"{server.url}/generate", json=body, timeout=60)
        assert response.status_code == 200, response.text
        return str(response.json()["generated_text"][0])

    assert " machines" in answer()
    for words in (["machines"], [" mach", "artificial intelligence"]):
        text = answer(bad_words=words)
        assert text and not any(word in text for word in words)


def test_text_generation_of_the_hub_client(server: LightLLMServer) -> None:
    hub = InferenceClient(model=server.url)
    whole = hub.text_generation("What is the capital of France?", max_new_tokens=20)
    assert "Paris" in whole
    stream = hub.text_generation("What is the capital of France?", max_new_tokens=20, stream=True)
    assert "".join(stream) == whole
