"""Answers of the routes for vectors. None is streamed."""

from __future__ import annotations

import base64
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from lightllm.errors import RequestError
from lightllm.httpserver.record import RequestRecord
from lightllm.httpserver.rendering import json_bytes
from lightllm.httpserver.vector_model import VectorModel


def pooled(record: RequestRecord) -> list[np.ndarray]:
    """float32 [size] of each prompt of a finished record, in their order."""
    vectors = [choice.pooled for choice in record.choices]
    return [vector for vector in vectors if vector is not None]


def usage(record: RequestRecord) -> dict[str, Any]:
    tokens = record.prompt_tokens
    details = {"cached_tokens": record.cached_tokens}
    return {
        "prompt_tokens": tokens,
        "total_tokens": tokens,
        "completion_tokens": 0,
        "prompt_tokens_details": details,
    }


class WholeRenderer:
    """`Renderer` of an answer that is never streamed. make: from a finished record to JSON."""

    def __init__(self, make: Callable[[RequestRecord], bytes]) -> None:
        self.answer = make

    def preparation(self, record: RequestRecord) -> None:
        return None

    def events(self, record: RequestRecord) -> list[bytes]:
        return []

    def error(self, error: RequestError) -> bytes:
        return b""

    def end(self, record: RequestRecord) -> list[bytes]:
        return []


class EmbeddingForm(NamedTuple):
    """How a client wants its vectors."""

    dimensions: int | None
    """None: all."""
    normalizes: bool | None
    """None: as the model folder says."""
    as_base64: bool


def embeddings_answer(
    record: RequestRecord, answer_id: str, name: str, model: VectorModel, form: EmbeddingForm
) -> bytes:
    """OpenAI's. Vector by vector: together they may be a hundred megabytes, and other threads want to go on meanwhile."""
    parts = []
    for index, vector in enumerate(pooled(record)):
        vector = model.embedding(vector, form.dimensions, form.normalizes)
        written: object = base64.b64encode(vector.tobytes()).decode() if form.as_base64 else vector.tolist()
        parts.append(json_bytes({"object": "embedding", "index": index, "embedding": written}))
    head, tail = json_bytes(_head(answer_id, name)), json_bytes({"usage": usage(record)})
    return b'%b,"data":[%b],%b' % (head[:-1], b",".join(parts), tail[1:])


def classes_answer(
    record: RequestRecord, answer_id: str, name: str, model: VectorModel, activates: bool | None
) -> bytes:
    """vLLM's."""
    data = []
    for index, logits in enumerate(pooled(record)):
        probs = model.probabilities(logits, activates)
        label = model.classes.names[int(logits.argmax())]
        data.append({"index": index, "label": label, "probs": probs.tolist(), "num_classes": len(probs)})
    return json_bytes({**_head(answer_id, name), "data": data, "usage": usage(record)})


Scores = Callable[[RequestRecord], list[float]]
"""The score of each document of a finished record."""


def similarities(record: RequestRecord, model: VectorModel, queries: int) -> list[float]:
    """Cosines, by an embedding model: the first `queries` prompts are queries, the others documents."""
    vectors = [model.embedding(vector, None, True).astype(np.float64) for vector in pooled(record)]
    asked, documents = vectors[:queries], vectors[queries:]
    return [float(asked[index % queries] @ vector) for index, vector in enumerate(documents)]


def scores_answer(record: RequestRecord, answer_id: str, name: str, scores: Scores) -> bytes:
    """vLLM's."""
    data = [{"index": index, "object": "score", "score": score} for index, score in enumerate(scores(record))]
    return json_bytes({**_head(answer_id, name), "data": data, "usage": usage(record)})


def ranking_answer(
    record: RequestRecord, answer_id: str, name: str, scores: Scores, top: int | None, texts: list[str] | None
) -> bytes:
    """Jina's and Cohere's, as vLLM gives it: the best first, of equal ones the first. texts: None: without them."""
    found = scores(record)
    order = sorted(range(len(found)), key=lambda index: -found[index])[:top]
    results = [
        {
            "index": index,
            **({} if texts is None else {"document": {"text": texts[index]}}),
            "relevance_score": found[index],
        }
        for index in order
    ]
    return json_bytes({"id": answer_id, "model": name, "usage": usage(record), "results": results})


def _head(answer_id: str, name: str) -> dict[str, Any]:
    return {"id": answer_id, "object": "list", "created": int(time.time()), "model": name}
