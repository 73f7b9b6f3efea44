"""How many and how long what a body holds may be: one more is refused, with the field and the limit in the message."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from support.fake_engine import FakeEngine

from lightllm.httpserver.openai.api import MAX_CHOICES
from lightllm.httpserver.openai.chat_messages import MAX_VARIABLES
from lightllm.httpserver.operating.profile_routes import MAX_ROUNDS
from lightllm.httpserver.reading.constraints import MAX_CHOICES as MAX_TEXTS
from lightllm.httpserver.reading.field_types import MAX_STRINGS
from lightllm.sampling_params import (
    MAX_BEST_OF,
    MAX_LOGPROBS,
    MAX_STOP_SEQUENCE_LENGTH,
    MAX_STOP_SEQUENCES,
    MAX_TOKEN_LIST,
)

NATIVE, TEXT, CHAT = "/generate", "/v1/completions", "/v1/chat/completions"
USER = {"role": "user", "content": "x"}
PART = {"type": "text", "text": "x"}
CALL = {"type": "function", "function": {"name": "f", "arguments": "{}"}}
TOOL = {"type": "function", "function": {"name": "f"}}


def native(**parameters: Any) -> dict[str, Any]:
    return {"inputs": "x", "parameters": {"max_new_tokens": 1, **parameters}}


def chat(*messages: Any, **fields: Any) -> dict[str, Any]:
    return {"messages": list(messages) or [USER], "max_tokens": 1, **fields}


ONE_TOO_MUCH: dict[str, tuple[str, Any, int]] = {
    "messages": (CHAT, chat(*[USER] * (MAX_STRINGS + 1)), MAX_STRINGS),
    "messages.content": (CHAT, chat({"role": "user", "content": [PART] * (MAX_STRINGS + 1)}), MAX_STRINGS),
    "messages.role": (CHAT, chat({"role": "x" * 65, "content": "x"}), 64),
    "messages.tool_calls": (CHAT, chat({"role": "assistant", "tool_calls": [CALL] * 1025}), 1024),
    "tools": (CHAT, chat(tools=[TOOL] * 1025), 1024),
    "functions": (CHAT, chat(functions=[{"name": "f"}] * 1025), 1024),
    "chat_template_kwargs": (CHAT, chat(chat_template_kwargs={f"a{i}": 1 for i in range(MAX_VARIABLES + 1)}), MAX_VARIABLES),
    "chat_template_kwargs.a": (CHAT, chat(chat_template_kwargs={"a": "x" * 4097}), 4096),
    "top_logprobs": (CHAT, chat(logprobs=True, top_logprobs=MAX_LOGPROBS + 1), MAX_LOGPROBS),
    "structured_outputs.choice": (CHAT, chat(structured_outputs={"choice": ["a"] * (MAX_TEXTS + 1)}), MAX_TEXTS),
    "guided_choice": (CHAT, chat(guided_choice=["a"] * (MAX_TEXTS + 1)), MAX_TEXTS),
    "prompt": (TEXT, {"prompt": ["x"] * (MAX_STRINGS + 1)}, MAX_STRINGS),
    "prompt of lists": (TEXT, {"prompt": [[7]] * (MAX_STRINGS + 1)}, MAX_STRINGS),
    "prompt and n": (TEXT, {"prompt": ["x"] * (MAX_CHOICES // 2 + 1), "n": 2}, MAX_CHOICES),
    "n": (TEXT, {"prompt": "x", "n": MAX_BEST_OF + 1}, MAX_BEST_OF),
    "logprobs": (TEXT, {"prompt": "x", "logprobs": MAX_LOGPROBS + 1}, MAX_LOGPROBS),
    "stop": (TEXT, {"prompt": "x", "stop": ["a"] * (MAX_STOP_SEQUENCES + 1)}, MAX_STOP_SEQUENCES),
    "best_of": (NATIVE, native(best_of=MAX_BEST_OF + 1), MAX_BEST_OF),
    "stop, native": (NATIVE, native(stop_sequences=["a"] * (MAX_STOP_SEQUENCES + 1)), MAX_STOP_SEQUENCES),
    "stop_sequences, many": (NATIVE, native(stop_sequences=["a"] * (MAX_STRINGS + 1)), MAX_STRINGS),
    "stop_sequences, long": (NATIVE, native(stop_sequences=["a" * (MAX_STOP_SEQUENCE_LENGTH + 1)]), MAX_STOP_SEQUENCE_LENGTH),
    "stop_sequences, long ids": (NATIVE, native(stop_sequences=[[7] * (MAX_STOP_SEQUENCE_LENGTH + 1)]), MAX_STOP_SEQUENCE_LENGTH),
    "stop_sequences, more ids": (NATIVE, native(stop_sequences=[[7] * 4097]), 4096),
    "stop_token_ids": (NATIVE, native(stop_token_ids=[7] * (MAX_TOKEN_LIST + 1)), MAX_TOKEN_LIST),
    "allowed_token_ids": (NATIVE, native(allowed_token_ids=[7] * (MAX_TOKEN_LIST + 1)), MAX_TOKEN_LIST),
    "logit_bias": (NATIVE, native(logit_bias={str(i): 1 for i in range(MAX_TOKEN_LIST + 1)}), MAX_TOKEN_LIST),
    "exponential_decay_length_penalty": (NATIVE, native(exponential_decay_length_penalty=[1, 1.0, 1]), 2),
    "timeout": (NATIVE, native(timeout=1.1e9), 1_000_000_000),
    "request_id": ("/abort_request", {"request_id": "x" * 257}, 256),
}  # fmt: skip
"""Field -> route, body, the limit."""


@pytest.mark.parametrize("name", ONE_TOO_MUCH)
def test_one_too_much_is_refused_with_field_and_limit(client: httpx.Client, name: str) -> None:
    path, body, limit = ONE_TOO_MUCH[name]
    response = client.post(path, json=body)
    assert response.status_code in (400, 422), response.text
    field = name.partition(",")[0].partition(" ")[0].rpartition(".")[2]
    assert str(limit) in response.text and field in response.text.replace("stop token", "stop_sequences")
    assert len(response.text) < 500


def test_as_much_as_is_allowed_is_taken(client: httpx.Client) -> None:
    messages = [{"role": "user" if i % 2 == 0 else "assistant", "content": "x"} for i in range(19)]
    body = chat(*messages, n=2, stop=["a"] * 4, logprobs=True, top_logprobs=MAX_LOGPROBS)
    assert client.post(CHAT, json=body).status_code == 200
    everything = native(
        stop_sequences=["zz"] * (MAX_STOP_SEQUENCES - 1) + ["z" * MAX_STOP_SEQUENCE_LENGTH],
        stop_token_ids=[7] * MAX_TOKEN_LIST, logit_bias={str(i): 1 for i in range(300)}, timeout=1e9,
    )  # fmt: skip
    response = client.post(NATIVE, json=everything)
    assert response.status_code == 200, response.text


def test_a_profile_has_a_longest_length(
    start_worker: Callable[..., Any], engine: FakeEngine, tmp_path: Path
) -> None:
    worker = start_worker(worker=2, profile_dir=str(tmp_path))
    response = httpx.post(worker.url + "/start_profile", json={"num_steps": MAX_ROUNDS + 1}, timeout=30)
    assert response.status_code == 400 and str(MAX_ROUNDS) in response.text and "num_steps" in response.text
