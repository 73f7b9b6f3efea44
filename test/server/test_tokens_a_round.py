"""Several tokens of a request from one round: clients are told the same as when each round brings one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from support.model_folder import make_model_folder
from support.server import LightLLMServer
from support.sse import chunks

SPEC = "lengths=20:60"


def native(url: str, prompt: str, **parameters: Any) -> dict[str, Any]:
    body = {
        "inputs": prompt,
        "parameters": {"max_new_tokens": 40, "do_sample": True, "seed": 7, **parameters},
    }
    answer = httpx.post(f"{url}/generate", json=body, timeout=60)
    assert answer.status_code == 200, answer.text
    return answer.json()


def native_stream(url: str, prompt: str, **parameters: Any) -> list[Any]:
    body = {"inputs": prompt, "parameters": {"max_new_tokens": 40, "seed": 7, **parameters}}
    answer = httpx.post(f"{url}/generate_stream", json=body, timeout=60)
    lines = [line for line in answer.text.splitlines() if line.startswith("data:")]
    return [json.loads(line.removeprefix("data:"))["token"] for line in lines]


def completion(url: str, **fields: Any) -> tuple[Any, Any]:
    body = {"model": "m", "prompt": "one two", "max_tokens": 40, "seed": 5, **fields}
    answer = httpx.post(f"{url}/v1/completions", json=body, timeout=60).json()
    return answer["choices"], answer["usage"]


def completion_stream(url: str, **fields: Any) -> tuple[str, list[Any], Any]:
    """Text, the log-probabilities of all tokens, and the usage."""
    body = {"model": "m", "prompt": "one two", "max_tokens": 40, "seed": 5, "stream": True, "logprobs": 2,
            "stream_options": {"include_usage": True}, **fields}  # fmt: skip
    text, tokens, usage = "", [], None
    for event in chunks(httpx.post(f"{url}/v1/completions", json=body, timeout=60)):
        for choice in event["choices"]:
            text += choice["text"]
            if choice["logprobs"]:
                tokens += zip(choice["logprobs"]["tokens"], choice["logprobs"]["token_logprobs"], strict=True)
        usage = event.get("usage") or usage
    return text, tokens, usage


def everything(url: str) -> list[Any]:
    whole = native(url, "hello")
    text = (
        whole["generated_text"][0] if isinstance(whole["generated_text"], list) else whole["generated_text"]
    )
    stop = text[len(text) // 2 : len(text) // 2 + 3]  # in the middle of what one of the rounds brings
    return [
        whole,
        native(url, "hello", stop_sequences=[stop]),
        native(url, "hello", return_details=True, ignore_eos=True),
        native(url, "x", n=3, best_of=3, min_new_tokens=10),
        native_stream(url, "hello", ignore_eos=True),
        native_stream(url, "hello", stop_sequences=[stop]),
        completion(url, n=2, logprobs=3),
        completion(url, stop=[stop], echo=True),
        completion_stream(url),
        completion_stream(url, stop=[stop], max_tokens=31),
    ]


def answers(model_dir: Path, round_tokens: str) -> list[Any]:
    options = [
        "--model_dir",
        str(model_dir),
        "--model_name",
        "m",
        "--mock_backend",
        f"{SPEC},round_tokens={round_tokens}",
    ]
    with LightLLMServer(options) as server:
        server.wait_ready()
        return everything(server.url)


@pytest.fixture(scope="module")
def one_a_round(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Any]]:
    folder = make_model_folder(tmp_path_factory.mktemp("model") / "tiny")
    return folder, answers(folder, "1:1")


@pytest.mark.parametrize("round_tokens", ["1:4", pytest.param("4:4", marks=pytest.mark.slow)])
def test_texts_log_probabilities_and_usage_are_those_of_one_token_a_round(
    one_a_round: tuple[Path, list[Any]], round_tokens: str
) -> None:
    folder, expected = one_a_round
    for several, one in zip(answers(folder, round_tokens), expected, strict=True):
        assert several == one
