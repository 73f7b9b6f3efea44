"""Fields beyond those of `SamplingParams` that change an answer: what reaches the engine, and what comes back."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import httpx
import pytest
import tokenizers
from httpserver.conftest import Worker
from support.asked_fields import CHAT, COMPLETION, NATIVE, ask, used
from support.fake_engine import FakeEngine
from support.http_client import http_client

from lightllm.config import ServerConfig
from lightllm.constraints.grammars import bytes_tokenizer, make_matcher
from lightllm.errors import InvalidParameter
from lightllm.httpserver.reading.fill_in_middle import fim_tokens
from lightllm.ipc.runtime_dir import RuntimeDir
from lightllm.tokenizer import Tokenizer, load_tokenizer

ROUTES = pytest.mark.parametrize("path", [CHAT, COMPLETION, NATIVE])


def refused(client: httpx.Client, path: str, **fields: Any) -> str:
    response = ask(client, path, **fields)
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert error["param"] in fields
    return str(error["message"])


# -- bad_words


def accepts(grammar: str, text: str) -> bool:
    """Whether an output may be this text, and end there."""
    matcher = make_matcher(bytes_tokenizer(), "guided_grammar", grammar)
    return all(matcher.consume_token(byte) for byte in text.encode()) and matcher.is_accepting()


@ROUTES
def test_no_bad_word_can_come(client: httpx.Client, engine: FakeEngine, path: str) -> None:
    words = ["foo", 'b/a"r\\', "(a|b)*", "größe 🙂", "x\ny"]
    grammar = used(client, engine, path, bad_words=words).guided_grammar
    for word in words:
        assert not accepts(grammar, word) and not accepts(grammar, f"of {word} and"), word
        assert accepts(grammar, word[:-1] + "-" + word[-1]), word
    assert accepts(grammar, "") and accepts(grammar, "aaab\n\tfo o Foo /")


@ROUTES
def test_bad_words_have_limits(client: httpx.Client, engine: FakeEngine, path: str) -> None:
    assert "at most 100" in refused(client, path, bad_words=["x"] * 101)
    assert "at most 100 of 1000" in refused(client, path, bad_words=["x" * 501] * 2)
    assert "no empty text" in refused(client, path, bad_words=["a", ""])
    assert "can not be used in same time" in refused(client, path, bad_words=["a"], regex="[a-z]+")
    assert used(client, engine, path, bad_words=[]).guided_grammar == ""
    assert used(client, engine, path, bad_words=["é" * 1000]).guided_grammar


# -- logit_bias


@ROUTES
def test_a_bias_may_name_tokens_by_their_text(
    client: httpx.Client, engine: FakeEngine, tokenizer: Tokenizer, path: str
) -> None:
    ids = tokenizer.encode(" Größe", add_special_tokens=False)
    assert len(ids) > 1
    for biases in (
        {"7": 1.5, " Größe": -3},
        [[7, 1.5], [" Größe", -3]],
        [["7", 1.5], [" Größe", "-3"], ["one", None]],
    ):
        assert used(client, engine, path, logit_bias=biases).logit_bias == {7: 1.5, **dict.fromkeys(ids, -3)}
    never = used(client, engine, path, logit_bias=[[" Größe", False], [9, False]]).logit_bias
    assert never == dict.fromkeys([*ids, 9], -100)
    assert used(client, engine, path, logit_bias=[]).logit_bias == {}


@ROUTES
def test_biases_have_limits(
    client: httpx.Client, engine: FakeEngine, tokenizer: Tokenizer, path: str
) -> None:
    assert "at most" in refused(client, path, logit_bias={"x" * 2001: 1})
    assert "at most" in refused(client, path, logit_bias={f"x{i}": 1 for i in range(1025)})
    assert "not in [0, " in refused(client, path, logit_bias={str(tokenizer.vocab_size): 1})
    status = 422 if path == NATIVE else 400
    for wrong in ({"-1": 1}, {str(2**31): 1}, {"1" * 400: 1}, [[2**31, 1]], [[7]], 5, [["a", "b"]]):
        response = ask(client, path, logit_bias=wrong)
        assert response.status_code == status and "logit_bias" in response.text, wrong


# -- prompt_logprobs


def test_a_completion_tells_how_likely_its_prompt_was(
    client: httpx.Client, engine: FakeEngine, tokenizer: Tokenizer
) -> None:
    body = {"prompt": ["one two", "of"], "n": 2, "prompt_logprobs": 2, "max_tokens": 1}
    choices = client.post(COMPLETION, json=body).json()["choices"]
    assert [engine.added[0].params.prompt_logprobs, engine.added[0].params.raw_logprobs] == [2, True]
    for choice, request in zip(
        choices, (engine.added[0], engine.added[0], *engine.added[1:2] * 2), strict=True
    ):
        ids = request.prompt_ids.tolist()
        first, *rest = choice["prompt_logprobs"]
        assert first is None and len(rest) == len(ids) - 1
        for position, entries in enumerate(rest, 1):
            own = str(ids[position])
            assert next(iter(entries)) == own and set(entries) == {own, "20", "21"}
            assert entries[own]["logprob"] == -position
            assert entries[own]["decoded_token"] == tokenizer.token_text(ids[position])
            others = {key: value["rank"] for key, value in entries.items() if key != own}
            assert all(others[key] == int(key) - 19 for key in others)


def test_a_chat_has_them_beside_its_choices(client: httpx.Client, engine: FakeEngine) -> None:
    answer = ask(client, CHAT, prompt_logprobs=0, n=2).json()
    assert len(answer["prompt_logprobs"]) == len(engine.added[-1].prompt_ids)
    assert all(len(entries) == 1 for entries in answer["prompt_logprobs"][1:])
    assert "prompt_logprobs" not in answer["choices"][0]
    assert "prompt_logprobs" not in ask(client, CHAT).json()
    assert engine.added[-1].params.prompt_logprobs == -1


def test_lightllms_own_answer_has_them_with_the_prompts_ids(client: httpx.Client, engine: FakeEngine) -> None:
    answer = ask(client, NATIVE, prompt_logprobs=1).json()
    ids = engine.added[-1].prompt_ids.tolist()
    assert answer["prompt_token_ids"] == ids and len(answer["prompt_logprobs"]) == len(ids)
    assert answer["prompt_logprobs"][0] is None and set(answer["prompt_logprobs"][1]) == {str(ids[1]), "20"}
    assert "prompt_logprobs" not in ask(client, NATIVE, prompt_logprobs=-1).json()
    body = {"inputs": "x", "parameters": {"prompt_logprobs": 0}}
    for path in ("/generate_stream", "/"):
        refused = client.post(path, json=body)
        assert refused.status_code == 400 and "prompt_logprobs" in refused.text
    for wrong in (-2, 21):
        refused = ask(client, NATIVE, prompt_logprobs=wrong)
        assert refused.status_code == 400 and "[-1, 20]" in refused.text


@pytest.mark.parametrize("path", [CHAT, COMPLETION])
def test_prompt_logprobs_have_limits(client: httpx.Client, path: str) -> None:
    assert "streams" in refused(client, path, prompt_logprobs=1, stream=True)
    for wrong in (-1, 21):
        assert "[0, 20]" in refused(client, path, prompt_logprobs=wrong)


def test_an_echo_has_its_own_number_of_alternatives(client: httpx.Client, engine: FakeEngine) -> None:
    body = {"prompt": "one two", "echo": True, "logprobs": 1, "prompt_logprobs": 3, "max_tokens": 1}
    choice = client.post(COMPLETION, json=body).json()["choices"][0]
    assert engine.added[-1].params.prompt_logprobs == 3
    assert set(map(len, choice["logprobs"]["top_logprobs"][1:-1])) == {2}  # the token and one more
    assert set(map(len, choice["prompt_logprobs"][1:])) == {4}
    assert not any(math.isnan(value) for value in choice["logprobs"]["token_logprobs"][1:])


# -- suffix

FAMILIES = {
    "Qwen2.5-Coder": (["<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"], ["<|file_sep|>"]),
    "StarCoder": (["<fim_prefix>", "<fim_suffix>", "<fim_middle>"], ["<file_sep>"]),
    "DeepSeek-Coder": (["<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"], []),
    "CodeLlama": (["▁<PRE>", "▁<SUF>", "▁<MID>"], ["▁<EOT>"]),
}


def with_tokens(folder: Path, tokens: list[str]) -> Tokenizer:
    """The tokenizer of a folder, after these special tokens were added to it."""
    file = str(folder / "tokenizer.json")
    changed = tokenizers.Tokenizer.from_file(file)
    changed.add_special_tokens(tokens)
    changed.save(file)
    return load_tokenizer(str(folder))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_tokenizer_tells_how_a_gap_is_filled(model_folder: Path, family: str) -> None:
    marks, ends = FAMILIES[family]
    changed = with_tokens(model_folder, [*marks, *ends])
    found = fim_tokens(changed.token_id)
    prefix, suffix, middle = (changed.token_id(mark) for mark in marks)
    assert found.prompt([10, 11], [12]) == [prefix, 10, 11, suffix, 12, middle]
    assert found.ends == tuple(changed.token_id(end) for end in ends)


def test_codestral_reads_the_suffix_first(model_folder: Path) -> None:
    changed = with_tokens(model_folder, ["[PREFIX]", "[SUFFIX]"])
    suffix, prefix = changed.token_id("[SUFFIX]"), changed.token_id("[PREFIX]")
    assert fim_tokens(changed.token_id).prompt([10], [12]) == [suffix, 12, prefix, 10]


def test_a_model_without_the_tokens_refuses_a_suffix(client: httpx.Client, tokenizer: Tokenizer) -> None:
    assert "no tokens for it" in refused(client, COMPLETION, suffix="x")
    assert ask(client, COMPLETION, suffix="").status_code == 200
    with pytest.raises(InvalidParameter):
        fim_tokens(tokenizer.token_id)


def test_a_completion_fills_the_gap_before_its_suffix(
    runtime: RuntimeDir, engine: FakeEngine, model_folder: Path
) -> None:
    marks, ends = FAMILIES["Qwen2.5-Coder"]
    changed = with_tokens(model_folder, [*marks, *ends])
    prefix, suffix, middle = (changed.token_id(mark) for mark in marks)
    engine.ready(vocab_size=changed.vocab_size)
    config = ServerConfig(model_dir=str(model_folder), httpserver_workers=2)
    worker = Worker(runtime, changed, config, 1)
    try:
        with http_client(worker.url) as client:
            before, behind = (changed.encode(text, add_special_tokens=False) for text in ("one two", "of"))
            expected = [changed.bos_token_id, prefix, *before, suffix, *behind, middle]
            for prompt in ("one two", before, ["one two"]):
                body = {"prompt": prompt, "suffix": "of", "stop_token_ids": [9]}
                assert client.post(COMPLETION, json=body).status_code == 200
                request = engine.added[-1]
                assert request.prompt_ids.tolist() == expected
                assert request.params.stop_token_ids == [9, changed.token_id("<|file_sep|>")]
            body = {"prompt": "one two", "suffix": "of", "add_special_tokens": False}
            assert client.post(COMPLETION, json=body).status_code == 200
            assert engine.added[-1].prompt_ids.tolist() == expected[1:]
            long = client.post(COMPLETION, json={"prompt": "x", "suffix": "of " * 600, "max_tokens": 1})
            assert long.status_code == 400 and "maximum context length" in long.json()["error"]["message"]
            echo = client.post(COMPLETION, json={"prompt": "x", "suffix": "of", "echo": True})
            assert echo.status_code == 400 and echo.json()["error"]["param"] == "echo"
    finally:
        engine.ready()
        worker.close()
