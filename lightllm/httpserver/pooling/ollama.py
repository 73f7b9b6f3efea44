"""Ollama's routes for vectors: `/api/embed`, and `/api/embeddings`, which was there before it. Each body is read as the one of
`/v1/embeddings` that it means."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Annotated, Any

from fastapi import APIRouter, Request
from pydantic import ConfigDict, Field
from starlette.responses import JSONResponse, Response

from lightllm.http.body import parse_body
from lightllm.httpserver.openapi import documented
from lightllm.httpserver.pooling import rendering
from lightllm.httpserver.pooling.api import respond_whole, vector_model
from lightllm.httpserver.pooling.models import EmbeddingsRequest
from lightllm.httpserver.pooling.reading import read_prompts
from lightllm.httpserver.reading import other_fields
from lightllm.httpserver.reading.field_types import MAX_STRINGS, Body, Bool, Int, Text
from lightllm.httpserver.record import RequestRecord
from lightllm.httpserver.rendering import json_bytes
from lightllm.httpserver.state import ServerState
from lightllm.httpserver.vector_model import VectorModel


class _OllamaVectors(Body):
    model_config = ConfigDict(extra="allow")

    model: Text
    options: dict[str, Any] | None = None
    """Of sampling and of the machine: neither changes a vector."""
    keep_alive: Any = None
    priority: Int | None = None
    """Ours: as in the other APIs."""


class OllamaEmbedRequest(_OllamaVectors):
    """Body of `/api/embed`."""

    input: Text | Annotated[list[Text], Field(fail_fast=True, max_length=MAX_STRINGS)]
    truncate: Bool | None = Field(
        default=None, description="Cut off the end of what is too long (true), or refuse it."
    )
    dimensions: Int | None = Field(default=None, description="As of /v1/embeddings.")

    def as_embeddings(self) -> EmbeddingsRequest:
        keep = None if self.truncate is False else -1
        return EmbeddingsRequest(
            model=self.model, input=self.input, dimensions=self.dimensions, truncate_prompt_tokens=keep,
            normalize=True, priority=self.priority,
        )  # fmt: skip


class OllamaEmbeddingsRequest(_OllamaVectors):
    """Body of `/api/embeddings`."""

    prompt: Text | None = None

    def as_embeddings(self) -> EmbeddingsRequest:
        """Its vector is the model's own, of whatever length."""
        return EmbeddingsRequest(
            model=self.model,
            input=self.prompt or "",
            truncate_prompt_tokens=-1,
            normalize=False,
            priority=self.priority,
        )


def ollama_vector_routes(state: ServerState) -> APIRouter:
    """Where nothing is given the answer holds nothing: so Ollama loads its models."""
    router = APIRouter(prefix="/api", tags=["Ollama"])

    @router.post("/embed", **documented(OllamaEmbedRequest, "A vector of each input.", ollama=True))
    async def embed(request: Request) -> Response:
        """Vectors of one or several texts, of length 1."""
        body = await parse_body(request, OllamaEmbedRequest, state.bodies)
        if not body.input:
            _check(state, body)
            return JSONResponse({"model": body.model, "embeddings": []})
        return await _vectors(state, request, body, body.as_embeddings(), _embed_answer)

    @router.post("/embeddings", **documented(OllamaEmbeddingsRequest, "The vector.", ollama=True))
    async def embeddings(request: Request) -> Response:
        """The vector of one text, as the model gives it."""
        body = await parse_body(request, OllamaEmbeddingsRequest, state.bodies)
        if not body.prompt:
            _check(state, body)
            return JSONResponse({"embedding": []})
        return await _vectors(state, request, body, body.as_embeddings(), _embeddings_answer)

    return router


_Answer = Callable[[RequestRecord, str, list[list[float]]], dict[str, Any]]
"""From a finished record, the model's name and the vectors."""


def _check(state: ServerState, body: _OllamaVectors) -> tuple[VectorModel, str]:
    """The model and its name for the client. Raises `RequestError`."""
    model = vector_model(state, "embed")
    other_fields.check(body, body.model_extra, {}, frozenset(), "/api")
    return model, state.check_model(body.model)


async def _vectors(
    state: ServerState, request: Request, body: _OllamaVectors, meant: EmbeddingsRequest, answer: _Answer
) -> Response:
    model, name = _check(state, body)
    params = meant.sampling(state.limits.vocab_size, "/api")
    dimensions = model.checked_dimensions(meant.dimensions, name)
    field = "input" if isinstance(body, OllamaEmbedRequest) else "prompt"
    prompts = await read_prompts(state, meant, meant.input, params, field)

    def make(record: RequestRecord, answer_id: str) -> bytes:
        vectors = [
            model.embedding(vector, dimensions, meant.normalizes).tolist()
            for vector in rendering.pooled(record)
        ]
        return json_bytes(answer(record, name, vectors))

    return respond_whole(state, request, prompts, "ollama", make)


def _embed_answer(record: RequestRecord, name: str, vectors: list[list[float]]) -> dict[str, Any]:
    """The model is always loaded: what Ollama calls loading is the time in the waiting list, as for texts."""
    entered = record.entered or record.started
    return {
        "model": name,
        "embeddings": vectors,
        "total_duration": round((time.monotonic() - record.started) * 1e9),
        "load_duration": round((entered - record.started) * 1e9),
        "prompt_eval_count": record.prompt_tokens,
    }


def _embeddings_answer(record: RequestRecord, name: str, vectors: list[list[float]]) -> dict[str, Any]:
    return {"embedding": vectors[0]}
