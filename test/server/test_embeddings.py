"""POST /v1/embeddings of a server with an embedding model: the vectors of transformers, through OpenAI's own client too."""

from __future__ import annotations

import base64
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import numpy as np
import openai
import pytest
import torch
from support.metrics import samples
from support.pooling_models import Reference, make_embedding_model
from support.server import LightLLMServer

from lightllm.tokenizer import Tokenizer, load_tokenizer

LONGEST = 160
OPTIONS = (
    "--device", "cpu", "--data_type", "fp32", "--max_total_token_num", "600", "--max_req_total_len", str(LONGEST),
    "--chunked_prefill_size", "16", "--running_max_req_size", "8",
)  # fmt: skip
TEXTS = ["The quick brown fox", "jumps over the lazy dog. " * 8, "Größe, déjà vu", "a", "Привет мир " * 5]


class Served(NamedTuple):
    server: LightLLMServer
    tokenizer: Tokenizer
    reference: Reference

    def post(self, path: str, **body: Any) -> httpx.Response:
        return httpx.post(self.server.url + path, json=body, timeout=60)

    def embed(self, **body: Any) -> httpx.Response:
        return self.post("/v1/embeddings", **body)

    def metrics(self) -> dict[str, float]:
        return samples(httpx.get(self.server.url + "/metrics").text)

    def vectors(self, **body: Any) -> torch.Tensor:
        answer = self.embed(**body)
        assert answer.status_code == 200, answer.text
        return torch.tensor([item["embedding"] for item in answer.json()["data"]])

    def expected(self, texts: list[str], special: bool = True) -> torch.Tensor:
        ids = [self.tokenizer.encode(text, special) for text in texts]
        return unit(torch.stack([self.reference(one) for one in ids]))


def unit(vectors: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.normalize(vectors, dim=-1)


def same(actual: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=2e-5)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("embedding") / "model"
    reference = make_embedding_model(folder, "mean", matryoshka_dimensions=[16, 32])
    with LightLLMServer(["--model_dir", str(folder), *OPTIONS]) as server:
        yield Served(server, load_tokenizer(str(folder)), reference)


def test_openais_client_gets_the_vectors_of_transformers(served: Served) -> None:
    client = openai.OpenAI(base_url=served.server.url + "/v1", api_key="none")
    for input in (TEXTS, TEXTS[0], [served.tokenizer.encode(text) for text in TEXTS], TEXTS[0]):
        several = input if isinstance(input, list) else [input]
        answer = client.embeddings.create(model="any", input=input)  # base64, unless told otherwise
        same(torch.tensor([item.embedding for item in answer.data]), served.expected(TEXTS[: len(several)]))
        tokens = sum(len(served.tokenizer.encode(text)) for text in TEXTS[: len(several)])
        assert answer.usage.prompt_tokens == answer.usage.total_tokens == tokens
        assert [item.index for item in answer.data] == list(range(len(several))) and answer.model == "any"


def test_base64_is_of_the_same_numbers(served: Served) -> None:
    plain = served.vectors(input=TEXTS, encoding_format="float").numpy()
    answer = served.embed(input=TEXTS, encoding_format="base64").json()
    decoded = [np.frombuffer(base64.b64decode(item["embedding"]), dtype="<f4") for item in answer["data"]]
    np.testing.assert_array_equal(np.stack(decoded), plain.astype(np.float32))


def test_a_prompt_of_many_chunks_beside_others_is_as_one_alone(served: Served) -> None:
    texts = [f"{index} " + "one two three " * index for index in range(12)]
    with ThreadPoolExecutor(12) as pool:
        for text, vectors in zip(
            texts, pool.map(lambda text: served.vectors(input=text), texts), strict=True
        ):
            same(vectors, served.expected([text]))
    same(served.vectors(input=texts), served.expected(texts))


def test_matryoshka_vectors_are_cut_and_then_made_of_length_1(served: Served) -> None:
    whole = torch.stack([served.reference(served.tokenizer.encode(text)) for text in TEXTS])
    same(served.vectors(input=TEXTS, dimensions=16), unit(whole[:, :16]))
    raw = served.vectors(input=TEXTS, normalize=False)
    torch.testing.assert_close(raw, whole, rtol=1e-4, atol=1e-4)


def test_the_longest_input_is_taken_and_a_longer_one_refused_or_cut(served: Served) -> None:
    longest = [7] * LONGEST
    same(served.vectors(input=longest), unit(served.reference(longest)[None]))
    refused = served.embed(input=[*longest, 7])
    assert refused.status_code == 400 and refused.json()["error"]["code"] == "context_length_exceeded"
    assert f"maximum context length is {LONGEST} tokens" in refused.json()["error"]["message"]
    assert served.embed(input="word " * 500).status_code == 400
    whole = served.tokenizer.encode("word " * 500)
    cut = [*whole[: LONGEST - 1], 2]
    same(served.vectors(input="word " * 500, truncate_prompt_tokens=-1), unit(served.reference(cut)[None]))
    cut = [*served.tokenizer.encode("one two three four", False)[-3:], 2]
    shortened = served.vectors(input="one two three four", truncate_prompt_tokens=4, truncation_side="left")
    same(shortened, unit(served.reference(cut)[None]))
    same(served.vectors(input=[5, 6, 7], truncate_prompt_tokens=2), unit(served.reference([5, 6])[None]))


@pytest.mark.parametrize(
    ("body", "field", "says"),
    [
        ({}, "input", "required"),
        ({"input": []}, "input", "no tokens"),
        ({"input": [[]]}, "input", "no tokens"),
        ({"input": "", "add_special_tokens": False}, "input", "no tokens"),
        ({"input": [1, -1]}, "input", "greater than"),
        ({"input": [384]}, "input", "vocab_size"),
        ({"input": ["a", 1]}, "input", "string"),
        ({"input": {"a": 1}}, "input", "string"),
        ({"input": ["a"] * 2049}, "input", "2048"),
        ({"input": "a", "dimensions": 24}, "dimensions", "one of 16, 32"),
        ({"input": "a", "dimensions": 0}, "dimensions", "one of"),
        ({"input": "a", "encoding_format": "hex"}, "encoding_format", "base64"),
        ({"input": "a", "truncate_prompt_tokens": 161}, "truncate_prompt_tokens", "160"),
        ({"input": "a", "truncate_prompt_tokens": 0}, "truncate_prompt_tokens", "-1"),
        ({"input": "a", "input_type": "query"}, "input_type", "not supported"),
        ({"input": "a", "normalize": True, "use_activation": False}, "normalize", "contradict"),
        ({"input": "a", "priority": 1 << 40}, "priority", "priority"),
    ],
)  # fmt: skip
def test_bad_input_is_refused_by_its_name(served: Served, body: Any, field: str, says: str) -> None:
    answer = served.embed(**body)
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert error["param"] == field and says in error["message"], error
    same(served.vectors(input=TEXTS[0]), served.expected(TEXTS[:1]))


def test_texts_are_refused_and_the_model_is_told_of(served: Served) -> None:
    for path, body in (
        ("/generate", {"inputs": "Hi"}),
        ("/v1/completions", {"prompt": "Hi"}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "Hi"}]}),
    ):
        answer = served.post(path, **body)
        assert answer.status_code == 400 and "use /v1/embeddings" in answer.text
    assert served.post("/get_score", chat="Hi").status_code == 400
    assert httpx.get(served.server.url + "/v1/models").json()["data"][0]["task"] == "embed"


def test_a_client_that_leaves_frees_its_slots(served: Served) -> None:
    with pytest.raises(httpx.TimeoutException):
        httpx.post(served.server.url + "/v1/embeddings", json={"input": [[9] * LONGEST] * 2000}, timeout=0.5)
    deadline = time.monotonic() + 60
    while True:
        figures = served.metrics()
        busy = [figures[f"lightllm_{name}"] for name in ("queue_size", "batch_current_size")]
        if busy == [0, 0]:
            break
        assert time.monotonic() < deadline, busy
        time.sleep(0.1)
    same(served.vectors(input=TEXTS[0]), served.expected(TEXTS[:1]))


def test_metrics_count_inputs_and_no_output(served: Served) -> None:
    before = served.metrics()
    served.vectors(input=TEXTS)
    after = served.metrics()

    def more(name: str) -> float:
        return after[name] - before[name]

    assert more("lightllm_request_success_total") == 1
    assert more("lightllm_request_input_length_count") == len(TEXTS)
    assert more("lightllm_request_finished_total{stop}") == len(TEXTS)
    for name in ("generated_tokens", "first_token_duration", "inter_token_duration", "max_new_tokens"):
        assert after[f"lightllm_request_{name}_count"] == 0


@pytest.mark.slow
@pytest.mark.parametrize("bare", [False, True])
def test_the_last_tokens_state_of_two_ranks(tmp_path: Path, bare: bool) -> None:
    """bare: the folder holds the layers alone, under names without `model.`."""
    reference = make_embedding_model(tmp_path / "model", "last", bare=bare)
    options = ["--model_dir", str(tmp_path / "model"), *OPTIONS, *(() if bare else ("--tp", "2"))]
    with LightLLMServer(options) as server:
        served = Served(server, load_tokenizer(str(tmp_path / "model")), reference)
        long = ["one two three four five " * 6 + end for end in ("a", "b", "a")]  # their prefix is shared
        for texts in (TEXTS, long, long):
            same(served.vectors(input=texts), served.expected(texts))
        answer = served.embed(input="a", dimensions=32)
        assert answer.status_code == 400 and "is_matryoshka" in answer.json()["error"]["message"]
        assert served.embed(input="a", dimensions=64).status_code == 200
        assert served.metrics()["lightllm_cache_length_sum"] > 0
