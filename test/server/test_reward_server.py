"""POST /get_score of a server with a reward model: scores of the reference, alone and together, with cached prefixes."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from support.reward_models import REWARD_TOKEN, make_reward_model
from support.server import LightLLMServer

from lightllm.tokenizer import load_tokenizer

MESSAGES = [{"role": "user", "content": "What is two and two?"}, {"role": "assistant", "content": "Four."}]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    folder = tmp_path_factory.mktemp("reward") / "model"
    reference = make_reward_model(folder, "InternLM2ForRewardModel")
    options = ["--model_dir", str(folder), "--device", "cpu", "--use_reward_model", "--data_type", "fp32"]
    options += ["--max_total_token_num", "2000", "--max_req_total_len", "256", "--chunked_prefill_size", "16"]
    with LightLLMServer(options) as server:
        yield server.url, load_tokenizer(str(folder)), reference


def post(url: str, path: str, body: Any) -> httpx.Response:
    return httpx.post(url + path, json=body, timeout=30)


def test_the_score_is_that_of_the_last_token_which_is_the_reward_token(served: Any) -> None:
    url, tokenizer, reference = served
    text = tokenizer.apply_chat_template(MESSAGES, add_generation_prompt=False)
    ids = [*tokenizer.encode(text, add_special_tokens=False), REWARD_TOKEN]
    expected = float(reference(ids)[-1])
    for body in ({"chat": text}, {"chat": MESSAGES}, {"chat": text}):
        answer = post(url, "/get_score", body)
        assert answer.status_code == 200, answer.text
        assert answer.json()["score"] == pytest.approx(expected, abs=1e-3)
        assert answer.json()["prompt_tokens"] == len(ids) and answer.json()["finish_reason"] == "length"


def test_scores_of_many_at_once_are_those_of_each_alone(served: Any) -> None:
    url, tokenizer, reference = served
    texts = [f"The quick brown fox jumps over {'the lazy dog ' * i}" for i in range(16)]
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda text: post(url, "/get_score", {"chat": text}).json(), texts))
    for text, answer in zip(texts, answers, strict=True):
        ids = [*tokenizer.encode(text, add_special_tokens=False), REWARD_TOKEN]
        assert answer["score"] == pytest.approx(float(reference(ids)[-1]), abs=1e-3)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/generate", {"inputs": "Hi"}),
        ("/v1/completions", {"prompt": "Hi"}),
        ("/v1/chat/completions", {"messages": MESSAGES}),
    ],
)
def test_texts_are_refused(served: Any, path: str, body: Any) -> None:
    answer = post(served[0], path, body)
    assert answer.status_code == 400 and "/get_score" in answer.text


def test_an_empty_conversation_is_refused(served: Any) -> None:
    assert post(served[0], "/get_score", {"chat": ""}).status_code == 400
    assert post(served[0], "/get_score", {"chat": 5}).status_code == 422
    assert post(served[0], "/get_score", {"chat": "a " * 5000}).status_code == 400
