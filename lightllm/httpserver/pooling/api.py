"""The routes for vectors: `/v1/embeddings`."""

from __future__ import annotations

import functools
import secrets

from fastapi import APIRouter, Request
from starlette.responses import Response

from lightllm.http.body import parse_body
from lightllm.httpserver.openapi import documented
from lightllm.httpserver.pooling.models import EmbeddingsRequest
from lightllm.httpserver.pooling.reading import checked_dimensions, read_prompts
from lightllm.httpserver.pooling.rendering import EmbeddingForm, WholeRenderer, embeddings_answer
from lightllm.httpserver.responses import respond
from lightllm.httpserver.state import ServerState


def pooling_routes(state: ServerState) -> APIRouter:
    """Each of them asks for a model of another kind than one that generates."""
    router = APIRouter(tags=["Vectors"])

    @router.post("/v1/embeddings", **documented(EmbeddingsRequest, "A vector of each input.", openai=True))
    async def embeddings(request: Request) -> Response:
        """Vectors of one or several inputs."""
        return await _embed(state, request)

    return router


async def _embed(state: ServerState, request: Request) -> Response:
    body = await parse_body(request, EmbeddingsRequest, state.bodies)
    state.require_admission("embed")
    model, name = state.vectors, state.check_model(body.model)
    assert model is not None
    params = body.sampling(state.limits.vocab_size, "/v1/embeddings")
    form = EmbeddingForm(
        checked_dimensions(body, model, name), body.normalizes, body.encoding_format == "base64"
    )
    prompts = await read_prompts(state, body, body.input, params)
    answer_id = f"embd-{secrets.token_hex(12)}"
    make = functools.partial(embeddings_answer, answer_id=answer_id, name=name, model=model, form=form)
    return respond(state.engine, request, prompts, WholeRenderer(make), False, answer_id)
