"""Ollama's routes for vectors, before a scripted engine."""

from __future__ import annotations

from collections.abc import Callable

import httpx
import numpy as np
import pytest
from support.fake_engine import FakeEngine

from lightllm.httpserver.vector_model import VectorModel
from lightllm.model_folder.pooling import Matryoshka, Pooling

Ask = Callable[..., httpx.Response]


def pool(prompt_ids: list[int]) -> list[float]:
    return [3.0, 4.0, float(len(prompt_ids)), float(sum(prompt_ids) % 7)]


@pytest.fixture(scope="module")
def embedder(ask_of: Callable[..., Ask]) -> Ask:
    return ask_of(VectorModel(4, Pooling("last", False), Matryoshka(True, (1, 2, 4))), task="embed")


def ids_of(embedder: Ask, text: str) -> list[int]:
    return [int(token) for token in embedder("/tokenize", prompt=text).json()["tokens"]]


def test_embed_gives_a_vector_of_length_1_of_each_text(embedder: Ask, engine: FakeEngine) -> None:
    engine.script.pool = pool
    texts = ["What is AI?", "Paris"]
    expected = [np.array(pool(ids_of(embedder, text))) for text in texts]
    answer = embedder("/api/embed", model="m", input=texts, keep_alive="5m", options={"num_ctx": 8}).json()
    for vector, wanted in zip(answer.pop("embeddings"), expected, strict=True):
        np.testing.assert_allclose(vector, wanted / np.linalg.norm(wanted), rtol=1e-6)
    assert answer.pop("total_duration") >= answer.pop("load_duration") >= 0
    assert answer == {"model": "m", "prompt_eval_count": sum(int(vector[2]) for vector in expected)}
    (one,) = embedder("/api/embed", model="m", input=texts[0], dimensions=2).json()["embeddings"]
    np.testing.assert_allclose(one, [0.6, 0.8], rtol=1e-6)


def test_embeddings_gives_the_models_own_vector(embedder: Ask, engine: FakeEngine) -> None:
    engine.script.pool = pool
    answer = embedder("/api/embeddings", model="m", prompt="What is AI?").json()
    assert answer == {"embedding": pool(ids_of(embedder, "What is AI?"))}


def test_what_is_too_long_is_cut_unless_that_is_forbidden(embedder: Ask, engine: FakeEngine) -> None:
    engine.script.pool = pool
    long = "one " * 800
    assert embedder("/api/embed", model="m", input=long).json()["prompt_eval_count"] == 512
    assert embedder("/api/embeddings", model="m", prompt=long).json()["embedding"][2] == 512
    refused = embedder("/api/embed", model="m", input=long, truncate=False)
    assert refused.status_code == 400 and "512" in refused.json()["error"]


def test_nothing_has_no_vector(embedder: Ask, engine: FakeEngine) -> None:
    for empty in ("", []):
        answer = embedder("/api/embed", model="m", input=empty).json()
        assert answer == {"model": "m", "embeddings": []}
    assert embedder("/api/embeddings", model="m").json() == {"embedding": []}
    assert engine.added == []


def test_dimensions_that_the_model_was_not_trained_for_are_refused(embedder: Ask) -> None:
    refused = embedder("/api/embed", model="m", input="a", dimensions=3)
    assert refused.status_code == 400 and "one of 1, 2, 4, got 3" in refused.json()["error"]


def test_a_model_says_what_it_is_for(embedder: Ask, client: httpx.Client) -> None:
    assert embedder("/api/show", model="m").json()["capabilities"] == ["embedding"]
    for path, fields in (
        ("embed", {"input": "a"}),
        ("embed", {"input": ""}),
        ("embeddings", {"prompt": "a"}),
    ):
        refused = client.post(f"/api/{path}", json={"model": "m", **fields})
        assert refused.status_code == 400
        assert "its model generates texts; --task embed" in refused.json()["error"]
    refused = embedder("/api/chat", model="m", messages=[{"role": "user", "content": "a"}])
    assert refused.status_code == 400 and refused.json().keys() == {"error"}
