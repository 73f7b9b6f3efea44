"""`/tokenize`, `/detokenize`, `/tokenizer_info` in the shapes of vLLM and SGLang, and the render routes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import jinja2
import pytest
from httpserver.conftest import Worker
from support.fake_engine import FakeEngine
from support.http_client import http_client

from lightllm.tokenizer import Tokenizer

TEXT = "Größe 🙂 of one two"
MESSAGES = [{"role": "user", "content": TEXT}]
TOKENIZE = pytest.mark.parametrize("path", ["/tokenize", "/v1/tokenize"])
DETOKENIZE = pytest.mark.parametrize("path", ["/detokenize", "/v1/detokenize"])


def answer(response: httpx.Response) -> Any:
    assert response.status_code == 200, response.text
    return response.json()


def message(response: httpx.Response, status: int = 400) -> str:
    assert response.status_code == status, response.text
    body = response.json()
    return str(body.get("error", body)["message"])


@TOKENIZE
def test_a_text_is_tokenized_as_a_prompt_of_a_completion(
    client: httpx.Client, tokenizer: Tokenizer, path: str
) -> None:
    ids = tokenizer.encode(TEXT)
    assert answer(client.post(path, json={"prompt": TEXT})) == {
        "count": len(ids), "max_model_len": 512, "tokens": ids, "token_strs": None
    }  # fmt: skip
    plain = answer(client.post(path, json={"prompt": TEXT, "add_special_tokens": False}))
    assert plain["tokens"] == ids[1:] and ids[0] == tokenizer.bos_token_id
    strings = answer(client.post(path, json={"prompt": "one two", "return_token_strs": True}))["token_strs"]
    assert strings[0] == "<s>" and "".join(strings[1:]) == "one two"
    assert answer(client.post(path, json={"prompt": "", "add_special_tokens": False}))["tokens"] == []


@TOKENIZE
def test_several_texts_are_answered_with_lists(client: httpx.Client, tokenizer: Tokenizer, path: str) -> None:
    found = answer(client.post(path, json={"prompt": [TEXT, "one"], "return_token_strs": True}))
    assert found["tokens"] == [tokenizer.encode(TEXT), tokenizer.encode("one")]
    assert found["count"] == [len(ids) for ids in found["tokens"]]
    assert [len(strings) for strings in found["token_strs"]] == found["count"]


def test_a_conversation_has_the_tokens_that_a_chat_has(client: httpx.Client, engine: FakeEngine) -> None:
    answer(client.post("/v1/chat/completions", json={"messages": MESSAGES}))
    ids = engine.added[-1].prompt_ids.tolist()
    assert answer(client.post("/tokenize", json={"messages": MESSAGES}))["tokens"] == ids
    closed = {"messages": MESSAGES, "add_generation_prompt": False}
    assert len(answer(client.post("/tokenize", json=closed))["tokens"]) < len(ids)
    with_bos = answer(client.post("/tokenize", json={"messages": MESSAGES, "add_special_tokens": True}))
    assert with_bos["tokens"][1:] == ids


@TOKENIZE
@pytest.mark.parametrize(
    ("body", "wanted"),
    [
        ({}, "give prompt or messages"),
        ({"prompt": "a", "messages": MESSAGES}, "give prompt or messages"),
        ({"messages": MESSAGES, "chat_template": "{{ 1 }}"}, "chat_template is not supported"),
    ],
)
def test_what_cannot_be_tokenized_is_refused(
    client: httpx.Client, path: str, body: dict[str, Any], wanted: str
) -> None:
    assert wanted in message(client.post(path, json=body))


def test_a_text_without_end_is_refused_before_it_is_tokenized_whole(
    start_worker: Callable[..., Worker], engine: FakeEngine
) -> None:
    worker = start_worker(max_body_mb=16)
    with http_client(worker.url, timeout=60) as client:
        response = client.post("/tokenize", json={"prompt": "~!" * 3_000_000})
    assert "the most that are taken" in message(response)
    assert response.json()["param"] == "prompt"


@DETOKENIZE
def test_ids_become_their_text(client: httpx.Client, tokenizer: Tokenizer, path: str) -> None:
    ids = tokenizer.encode(TEXT)
    found = answer(client.post(path, json={"tokens": ids}))
    assert found == {"prompt": "<s>" + TEXT, "text": "<s>" + TEXT}
    assert answer(client.post(path, json={"tokens": ids, "skip_special_tokens": True}))["prompt"] == TEXT
    assert answer(client.post(path, json={"tokens": [ids[1:], []]}))["text"] == [TEXT, ""]
    assert answer(client.post(path, json={"tokens": []}))["prompt"] == ""


@DETOKENIZE
def test_half_a_character_is_replaced(client: httpx.Client, tokenizer: Tokenizer, path: str) -> None:
    ids = tokenizer.encode("🙂", add_special_tokens=False)
    assert len(ids) > 1
    for cut in range(1, len(ids)):
        assert "\ufffd" in answer(client.post(path, json={"tokens": ids[:cut]}))["prompt"]


@DETOKENIZE
def test_ids_beyond_the_vocabulary_are_refused(client: httpx.Client, tokenizer: Tokenizer, path: str) -> None:
    for ids in ([tokenizer.vocab_size], [[0], [5, 2**31 - 1]]):
        assert "vocab_size" in message(client.post(path, json={"tokens": ids}))
    status = 400 if path.startswith("/v1") else 422
    assert "tokens" in message(client.post(path, json={"tokens": [-1]}), status)
    assert "tokens" in message(client.post(path, json={"tokens": ["1"]}), status)


def test_the_tokenizers_settings_are_enough_to_render_chats_elsewhere(
    start_worker: Callable[..., Worker], engine: FakeEngine, model_folder: Path
) -> None:
    """As lm-eval's remote tokenizer does."""
    worker = start_worker(model_dir=str(model_folder))
    with http_client(worker.url) as client:
        info = answer(client.get("/tokenizer_info"))
        settings = json.loads((model_folder / "tokenizer_config.json").read_text())
        template = settings.pop("chat_template")
        assert {name: info[name] for name in settings} == settings
        assert info["chat_template"].endswith(template)
        eos = answer(
            client.post("/tokenize", json={"prompt": info["eos_token"], "add_special_tokens": False})
        )
        assert eos["tokens"] == [2]
        text = jinja2.Environment(undefined=jinja2.StrictUndefined, trim_blocks=True).from_string(info["chat_template"]).render(
            messages=MESSAGES, add_generation_prompt=True
        )  # fmt: skip
        own = answer(client.post("/tokenize", json={"prompt": text, "add_special_tokens": False}))["tokens"]
        assert own == answer(client.post("/tokenize", json={"messages": MESSAGES}))["tokens"]


# -- rendered requests


def test_a_rendered_completion_is_what_the_engine_would_get(client: httpx.Client, engine: FakeEngine) -> None:
    body = {"prompt": ["one two", "of"], "max_tokens": 7, "top_k": 5, "stop": "x", "seed": 3, "priority": 2}
    rendered = answer(client.post("/v1/completions/render", json=body))
    assert engine.added == []
    answer(client.post("/v1/completions", json=body))
    assert [entry["token_ids"] for entry in rendered] == [r.prompt_ids.tolist() for r in engine.added]
    for entry in rendered:
        assert entry["sampling_params"] == {
            "max_tokens": 7, "top_k": 5, "stop": ["x"], "seed": 3, "priority": 2
        }  # fmt: skip
        assert entry["request_id"].startswith("cmpl-") and entry["features"] is None
        assert entry["model"] == "tiny" and entry["stream"] is False and entry["priority"] == 2


def test_a_rendered_chat_is_what_the_engine_would_get(client: httpx.Client, engine: FakeEngine) -> None:
    body = {"messages": MESSAGES, "stream": True, "stream_options": {"include_usage": True}}
    rendered = answer(client.post("/v1/chat/completions/render", json=body))
    assert engine.added == []
    answer(client.post("/v1/chat/completions", json={"messages": MESSAGES}))
    request = engine.added[-1]
    assert rendered["token_ids"] == request.prompt_ids.tolist()
    assert rendered["sampling_params"]["max_tokens"] == request.params.max_new_tokens
    assert rendered["stream"] is True and rendered["stream_options"] == {"include_usage": True}
    again = {"prompt": rendered["token_ids"], **rendered["sampling_params"]}
    answer(client.post("/v1/completions", json=again))
    assert engine.added[-1].prompt_ids.tolist() == rendered["token_ids"]


@pytest.mark.parametrize("path", ["/v1/completions/render", "/v1/chat/completions/render"])
def test_rendering_refuses_what_generating_refuses(client: httpx.Client, path: str) -> None:
    start = {"messages": MESSAGES} if "chat" in path else {"prompt": "one"}
    assert "top_p" in message(client.post(path, json=start | {"top_p": 7}))
    assert "maximum context length" in message(client.post(path, json=start | {"max_tokens": 100_000}))
    image = {"type": "image_url", "image_url": {"url": "http://127.0.0.1:9/x.png"}}
    chat = {"messages": [{"role": "user", "content": [image]}]}
    assert "image_url" in message(client.post("/v1/chat/completions/render", json=chat))
