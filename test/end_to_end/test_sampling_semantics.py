"""What the sampling parameters mean, seen by a client: every token and log-probability against plain formulas on the
logits of transformers, in fp32, over real HTTP."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.checkpoints import make_checkpoint
from support.http_client import http_client
from support.server import LightLLMServer

from lightllm.tokenizer import load_tokenizer

PROMPT = [1, 40, 41, 42, 43, 44, 45, 46, 47, 48, 49, 50, 51, 52, 53, 54, 50, 51, 52]
EOS = 2
LENGTH = 20
SEED = 3
"""A checkpoint whose greedy continuations repeat tokens, so that penalties have something to count."""

Logits = np.ndarray
Edit = Callable[[Logits, list[int]], Logits]
"""(logits float64 [V], generated so far) -> logits that are sampled from."""


class Server:
    """The server under test, the reference model, and the tokenizer of both."""

    def __init__(self, server: LightLLMServer, folder: Path) -> None:
        from transformers import AutoModelForCausalLM

        self._client = http_client(server.url)
        self._model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        self.tokenizer = load_tokenizer(str(folder))

    def native(self, **parameters: Any) -> dict[str, Any]:
        body = {
            "inputs": PROMPT,
            "parameters": {"max_new_tokens": LENGTH, "return_details": True} | parameters,
        }
        response = self._client.post("/generate", json=body)
        assert response.status_code == 200, response.text
        return response.json()

    def completion(self, **fields: Any) -> dict[str, Any]:
        body = {"prompt": PROMPT, "max_tokens": LENGTH, "temperature": 0, "logprobs": 3} | fields
        response = self._client.post("/v1/completions", json=body)
        assert response.status_code == 200, response.text
        return response.json()["choices"][0]

    def name(self, token_id: int) -> str:
        """As OpenAI's completions name a token."""
        data = self.tokenizer.token_bytes(token_id)
        text = data.decode(errors="replace")
        return text if "\ufffd" not in text else "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)

    def prompt_logits(self, generated: tuple[int, ...] = ()) -> Logits:
        """float64 [tokens, V], one row a position of the prompt and `generated`."""
        with torch.inference_mode():
            return self._model(torch.tensor([[*PROMPT, *generated]])).logits[0].double().numpy()

    def logits(self, generated: list[int]) -> Logits:
        """float64 [V] after the prompt and `generated`."""
        return self.prompt_logits(tuple(generated))[-1]

    def greedy(self, edit: Edit, length: int = LENGTH, stops: tuple[int, ...] = (EOS,)) -> list[int]:
        generated: list[int] = []
        while len(generated) < length and not (generated and generated[-1] in stops):
            generated.append(int(edit(self.logits(generated), generated).argmax()))
        return generated

    def logprobs(self, token_ids: list[int], edit: Edit) -> list[float]:
        steps = ((token_id, token_ids[:i]) for i, token_id in enumerate(token_ids))
        return [float(log_softmax(edit(self.logits(before), before))[i]) for i, before in steps]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = make_checkpoint(tmp_path_factory.mktemp("model"), seed=SEED, std=0.2)
    options = ["--model_dir", str(folder), "--data_type", "fp32", "--max_total_token_num", "4000"]
    with LightLLMServer(options) as running:
        yield Server(running, folder)


def log_softmax(logits: Logits) -> Logits:
    shifted = logits - logits.max()
    return shifted - np.log(np.exp(shifted).sum())


def plain(logits: Logits, generated: list[int]) -> Logits:
    return logits


def penalize(
    counted: bool, listed: bool, repetition: float = 1.0, frequency: float = 0.0, presence: float = 0.0
) -> Edit:
    """`counted`, `listed`: whether frequency and presence, and repetition, see the prompt too."""

    def edit(logits: Logits, generated: list[int]) -> Logits:
        logits = logits.copy()
        for token_id in set(generated + (PROMPT if listed else [])):
            logits[token_id] *= 1 / repetition if logits[token_id] > 0 else repetition
        for token_id, count in Counter(generated + (PROMPT if counted else [])).items():
            logits[token_id] -= count * frequency + presence
        return logits

    return edit


def ids_of(answer: dict[str, Any]) -> list[int]:
    return [token["id"] for token in answer["tokens"]]


def check_native(
    server: Server, answer: dict[str, Any], edit: Edit, expected: list[int] | None = None
) -> None:
    ids = ids_of(answer)
    assert ids == (server.greedy(edit) if expected is None else expected)
    assert [token["logprob"] for token in answer["tokens"]] == pytest.approx(
        server.logprobs(ids, edit), abs=2e-3
    )


def test_defaults_are_greedy(server: Server) -> None:
    check_native(server, server.native(), plain)
    assert len(set(ids_of(server.native()))) < LENGTH, "tokens must repeat, or penalties are not tested below"


@pytest.mark.parametrize(
    "parameters",
    [
        {"do_sample": True, "temperature": 9e-6},
        {"do_sample": True, "temperature": 0},
        {"do_sample": False, "temperature": 5.0, "top_p": 0.1},
    ],
)
def test_what_means_greedy(server: Server, parameters: dict[str, Any]) -> None:
    check_native(server, server.native(**parameters), plain)


def test_native_penalties_see_generated_tokens(server: Server) -> None:
    values = {"repetition": 1.3, "frequency": 0.4, "presence": 0.7}
    parameters = {f"{name}_penalty": value for name, value in values.items()}
    edit = penalize(False, False, **values)
    check_native(server, server.native(**parameters), edit)
    assert server.greedy(edit) != server.greedy(plain)


def test_native_input_penalty_sees_the_prompt_too(server: Server) -> None:
    values = {"repetition": 1.3, "frequency": 0.4, "presence": 0.7}
    parameters = {f"{name}_penalty": value for name, value in values.items()}
    edit = penalize(True, True, **values)
    check_native(server, server.native(**parameters, input_penalty=True), edit)
    assert server.greedy(edit) != server.greedy(penalize(False, False, **values))


def test_openai_repetition_sees_the_prompt_and_the_others_do_not(server: Server) -> None:
    values = {"repetition": 1.3, "frequency": 0.4, "presence": 0.7}
    edit = penalize(False, True, **values)
    choice = server.completion(**{f"{name}_penalty": value for name, value in values.items()})
    check_completion(server, choice, server.greedy(edit))
    assert server.greedy(edit) != server.greedy(penalize(False, False, **values))


def check_completion(server: Server, choice: dict[str, Any], ids: list[int]) -> None:
    """The expected tokens, with log-probabilities of the untouched logits."""
    logprobs = choice["logprobs"]
    assert logprobs["tokens"] == [server.name(i) for i in ids]
    expected = server.logprobs(ids, plain)
    assert logprobs["token_logprobs"] == pytest.approx(expected, abs=2e-3)
    for i, alternatives in enumerate(logprobs["top_logprobs"]):
        best = np.sort(log_softmax(server.logits(ids[:i])))[::-1][:3]
        assert sorted(alternatives.values(), reverse=True)[:3] == pytest.approx(list(best), abs=2e-3)
        assert alternatives[logprobs["tokens"][i]] == logprobs["token_logprobs"][i]


def test_logprobs_are_after_temperature_in_the_native_api_and_raw_in_openais(server: Server) -> None:
    for top_k in (-1, 1, 5):
        parameters = {"temperature": 0.6, "top_k": top_k, "seed": 11, "do_sample": True}
        answer = server.native(**parameters)
        ids = ids_of(answer)
        check_native(server, answer, lambda logits, _: logits / 0.6, ids)
        choice = server.completion(**parameters)
        check_completion(server, choice, ids)


@pytest.mark.parametrize(("name", "value"), [("top_k", 3), ("top_p", 0.4), ("min_p", 0.3)])
def test_filters_keep_what_they_promise(server: Server, name: str, value: float) -> None:
    seen = set()
    for seed in range(12):
        ids = ids_of(
            server.native(do_sample=True, temperature=2.0, seed=seed, max_new_tokens=1, **{name: value})
        )
        seen.update(ids)
    probabilities = np.sort(np.exp(log_softmax(server.logits([]) / 2.0)))[::-1]
    order = np.argsort(-server.logits([]))
    kept = {
        "top_k": 3,
        "top_p": int((probabilities.cumsum() - probabilities < value).sum()),
        "min_p": int((probabilities >= value * probabilities[0]).sum()),
    }[name]
    assert seen <= set(order[:kept].tolist()) and len(seen) > 1


def test_logit_bias(server: Server) -> None:
    first = server.greedy(plain, 1)[0]

    def edit(logits: Logits, generated: list[int]) -> Logits:
        logits = logits.copy()
        logits[[first, 77]] += [-100, 3.5]
        return logits

    bias = {str(first): -100, "77": 3.5}
    check_native(server, server.native(logit_bias=bias), edit)
    check_completion(server, server.completion(logit_bias=bias), server.greedy(edit))
    assert set(ids_of(server.native(logit_bias={"99": 100}))) == {99}


def test_allowed_token_ids(server: Server) -> None:
    allowed = [70, 71, 72, 73]

    def edit(logits: Logits, generated: list[int]) -> Logits:
        only = np.full_like(logits, -np.inf)
        only[allowed] = logits[allowed]
        return only

    check_native(server, server.native(allowed_token_ids=allowed), edit)
    check_completion(server, server.completion(allowed_token_ids=allowed), server.greedy(edit))


def test_stop_token_ids_and_the_least_number_of_tokens(server: Server) -> None:
    greedy = server.greedy(plain)
    stop = greedy[4]
    at = greedy.index(stop) + 1
    answer = server.native(stop_token_ids=[stop])
    assert ids_of(answer) == greedy[:at]
    assert answer["finish_reason"] == "stop" and answer["count_output_tokens"] == at
    assert answer["tokens"][-1]["text"] == ""

    def edit(logits: Logits, generated: list[int]) -> Logits:
        logits = logits.copy()
        if len(generated) < 9:
            logits[[stop, EOS]] = -1e30
        return logits

    expected = server.greedy(edit, stops=(EOS, stop))
    assert len(expected) >= 10
    assert ids_of(server.native(stop_token_ids=[stop], min_new_tokens=10)) == expected
    choice = server.completion(stop_token_ids=[stop], min_tokens=10)
    assert len(choice["logprobs"]["tokens"]) == len(expected)


def test_stop_strings_end_at_the_first_match_in_the_text(server: Server) -> None:
    greedy = server.greedy(plain)
    text = server.tokenizer.decode(greedy)
    stop = next(pair for i in range(3, len(text)) if (pair := text[i : i + 2]).isascii() and len(pair) == 2)
    before = text[: text.index(stop)]
    answer = server.native(stop_sequences=[stop])
    assert answer["generated_text"] == [before] and answer["finish_reason"] == "stop"
    shown = server.native(stop_sequences=stop, include_stop_str_in_output=True)
    assert shown["generated_text"] == [before + stop]
    lengths = (len(server.tokenizer.decode(greedy[:n]).rstrip("\ufffd")) for n in itertools.count(1))
    tokens = next(n for n, length in enumerate(lengths, 1) if length >= len(before + stop))
    assert shown["count_output_tokens"] == tokens
    assert server.completion(stop=[stop, "never"])["text"] == before


def test_exponential_decay_length_penalty_raises_the_end(server: Server) -> None:
    def edit(logits: Logits, generated: list[int]) -> Logits:
        logits = logits.copy()
        logits[EOS] += abs(logits[EOS]) * (1.7 ** max(len(generated) - 3, 0) - 1)
        return logits

    answer = server.native(exponential_decay_length_penalty=[3, 1.7])
    check_native(server, answer, edit)
    assert answer["finish_reason"] == "stop"


def test_a_prompt_can_be_scored(server: Server) -> None:
    choice = server.completion(echo=True, max_tokens=0, logprobs=0)
    scores = choice["logprobs"]["token_logprobs"]
    logits = server.prompt_logits()
    expected = [float(log_softmax(logits[i])[PROMPT[i + 1]]) for i in range(len(PROMPT) - 1)]
    assert scores[0] is None and scores[1:] == pytest.approx(expected, abs=2e-3)
