"""Routes for vectors before a scripted engine: what a request has to be, and what becomes of pooled outputs."""

from __future__ import annotations

import base64
from collections.abc import Callable

import httpx
import numpy as np
import pytest
from support.fake_engine import FakeEngine

from lightllm.httpserver.vector_model import VectorModel
from lightllm.model_folder.pooling import Matryoshka, Pooling


def pool(prompt_ids: list[int]) -> list[float]:
    return [3.0, 4.0, float(len(prompt_ids)), float(sum(prompt_ids) % 7)]


Ask = Callable[..., httpx.Response]


@pytest.fixture(scope="module")
def embedder(ask_of: Callable[..., Ask]) -> Ask:
    return ask_of(VectorModel(4, Pooling("last", True), Matryoshka(True, (1, 2, 4))), task="embed")


def vectors(answer: httpx.Response) -> np.ndarray:
    assert answer.status_code == 200, answer.text
    return np.array([item["embedding"] for item in answer.json()["data"]])


def test_a_model_that_generates_says_why_it_gives_no_vectors(client: httpx.Client) -> None:
    answer = client.post("/v1/embeddings", json={"input": "a"})
    assert answer.status_code == 400
    assert "its model generates texts; --task embed" in answer.json()["error"]["message"]
    assert "task" not in client.get("/v1/models").json()["data"][0]


def test_embeddings_have_openais_shape(embedder: Ask, engine: FakeEngine) -> None:
    engine.script.pool = pool
    answer = embedder("/v1/embeddings", model="m", input=[[5, 6], [7, 8, 9]], user="u").json()
    assert answer.pop("id").startswith("embd-") and answer.pop("created") > 0
    expected = [np.array(pool([5, 6])) / np.linalg.norm(pool([5, 6])), np.array(pool([7, 8, 9]))]
    expected[1] /= np.linalg.norm(expected[1])
    for index, item in enumerate(answer.pop("data")):
        np.testing.assert_allclose(item.pop("embedding"), expected[index], rtol=1e-6)
        assert item == {"object": "embedding", "index": index}
    usage = {
        "prompt_tokens": 5,
        "total_tokens": 5,
        "completion_tokens": 0,
        "prompt_tokens_details": {"cached_tokens": 6},
    }
    assert answer == {"object": "list", "model": "m", "usage": usage}
    params = engine.added[-1].params
    assert (params.max_new_tokens, params.ignore_eos, params.greedy, params.logprobs) == (1, True, True, -1)


def test_dimensions_are_cut_before_the_length_becomes_1(embedder: Ask, engine: FakeEngine) -> None:
    engine.script.pool = pool
    np.testing.assert_allclose(
        vectors(embedder("/v1/embeddings", input=[5], dimensions=2)), [[0.6, 0.8]], rtol=1e-6
    )
    assert vectors(embedder("/v1/embeddings", input=[5], dimensions=2, normalize=False)).tolist() == [[3, 4]]
    assert vectors(embedder("/v1/embeddings", input=[5], use_activation=False)).tolist() == [[3, 4, 1, 5]]
    coded = embedder("/v1/embeddings", input=[5], dimensions=2, normalize=False, encoding_format="base64")
    assert base64.b64decode(coded.json()["data"][0]["embedding"]) == np.array([3, 4], dtype="<f4").tobytes()


@pytest.mark.parametrize(
    ("matryoshka", "dimensions", "says"),
    [
        (Matryoshka(), 3, "neither is_matryoshka nor matryoshka_dimensions"),
        (Matryoshka(True), 5, r"in [1, 4], got 5"),
        (Matryoshka(True), 0, r"in [1, 4], got 0"),
        (Matryoshka(True, (2,)), 4, "one of 2, got 4"),
    ],
)
def test_dimensions_that_the_model_was_not_trained_for_are_refused(
    ask_of: Callable[..., Ask], engine: FakeEngine, matryoshka: Matryoshka, dimensions: int, says: str
) -> None:
    ask = ask_of(VectorModel(4, matryoshka=matryoshka), task="embed")
    answer = ask("/v1/embeddings", input="a", dimensions=dimensions)
    assert answer.status_code == 400 and answer.json()["error"]["param"] == "dimensions"
    assert says in answer.json()["error"]["message"]
    engine.script.pool = pool
    same = ask("/v1/embeddings", input="a", dimensions=4)
    assert same.status_code == (400 if matryoshka.dimensions else 200)


def test_many_inputs_wait_a_few_at_a_time(ask_of: Callable[..., Ask], engine: FakeEngine) -> None:
    engine.script.pool = pool
    ask = ask_of(VectorModel(4), task="embed", max_waiting_requests=64)
    assert vectors(ask("/v1/embeddings", input=[[n % 300] * (n % 9 + 1) for n in range(200)])).shape == (
        200,
        4,
    )
    assert not engine.added[0].follows and all(message.follows for message in engine.added[4:])


def test_an_input_that_is_cut_keeps_its_special_tokens(embedder: Ask, engine: FakeEngine) -> None:
    engine.script.pool = pool
    text, asked = "one two three four five", "/v1/embeddings"
    whole = added(embedder(asked, input=text), engine)
    plain = added(embedder(asked, input=text, add_special_tokens=False), engine)
    assert whole == [1, *plain]
    assert added(embedder(asked, input=text, truncate_prompt_tokens=3), engine) == [1, *plain[:2]]
    assert added(embedder(asked, input=text, truncate_prompt_tokens=3, truncation_side="left"), engine) == [
        1,
        *plain[-2:],
    ]
    assert added(
        embedder(asked, input=[7, 8, 9], truncate_prompt_tokens=2, truncation_side="left"), engine
    ) == [8, 9]
    assert added(embedder(asked, input=text, truncate_prompt_tokens=1), engine) == [1]
    assert added(embedder(asked, input="x " * 500_000, truncate_prompt_tokens=-1), engine)[:1] == [1]
    assert len(engine.added[-1].prompt_ids) == 512


def added(answer: httpx.Response, engine: FakeEngine) -> list[int]:
    assert answer.status_code == 200, answer.text
    return engine.added[-1].prompt_ids.tolist()
