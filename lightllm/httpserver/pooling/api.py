"""The routes for vectors: `/v1/embeddings`, `/classify`, `/score`, `/rerank`."""

from __future__ import annotations

import functools
import secrets
from collections.abc import Callable

from fastapi import APIRouter, Request
from starlette.responses import Response

from lightllm.errors import InvalidParameter
from lightllm.http.body import parse_body
from lightllm.httpserver.openapi import documented
from lightllm.httpserver.pooling import rendering
from lightllm.httpserver.pooling.models import (
    ClassifyRequest,
    EmbeddingsRequest,
    PairScoresRequest,
    PairsRequest,
    RerankRequest,
)
from lightllm.httpserver.pooling.pairs import PairForms, shortened
from lightllm.httpserver.pooling.reading import read_pairs, read_prompts
from lightllm.httpserver.record import PromptRecord, RequestRecord
from lightllm.httpserver.responses import respond
from lightllm.httpserver.state import ServerState
from lightllm.httpserver.vector_model import VectorModel
from lightllm.parameter_spec import MAX_INT, Range


def pooling_routes(state: ServerState) -> APIRouter:
    """Each of them asks for a model of another kind than one that generates."""
    router = APIRouter(tags=["Vectors"])
    serves = state.config.serves
    forms = PairForms(state.encoder.tokenizer, serves == "score") if serves in ("score", "classify") else None

    @router.post("/v1/embeddings", **documented(EmbeddingsRequest, "A vector of each input.", openai=True))
    async def embeddings(request: Request) -> Response:
        """Vectors of one or several inputs."""
        return await _embed(state, request)

    @router.post("/v1/classify", **documented(ClassifyRequest, "Probabilities of labels.", openai=True))
    @router.post("/classify", **documented(ClassifyRequest, "Probabilities of labels."))
    async def classify(request: Request) -> Response:
        """Labels of one or several inputs, by a model with a classification head."""
        return await _classify(state, request)

    @router.post("/v1/score", **documented(PairScoresRequest, "A score of each pair.", openai=True))
    @router.post("/score", **documented(PairScoresRequest, "A score of each pair."))
    async def score(request: Request) -> Response:
        """How well documents fit queries."""
        return await _score(state, forms, request)

    @router.post("/v1/rerank", **documented(RerankRequest, "Documents, the best first.", openai=True))
    @router.post("/v2/rerank", **documented(RerankRequest, "Documents, the best first."))
    @router.post("/rerank", **documented(RerankRequest, "Documents, the best first."))
    async def rerank(request: Request) -> Response:
        """Orders documents by how well they fit a query."""
        return await _rerank(state, forms, request)

    return router


async def _embed(state: ServerState, request: Request) -> Response:
    body = await parse_body(request, EmbeddingsRequest, state.bodies)
    model = vector_model(state, "embed")
    name = state.check_model(body.model)
    params = body.sampling(state.limits.vocab_size, "/v1/embeddings")
    form = rendering.EmbeddingForm(
        model.checked_dimensions(body.dimensions, name), body.normalizes, body.encoding_format == "base64"
    )
    prompts = await read_prompts(state, body, body.input, params)
    answer = functools.partial(rendering.embeddings_answer, name=name, model=model, form=form)
    return respond_whole(state, request, prompts, "embd", answer)


async def _classify(state: ServerState, request: Request) -> Response:
    body = await parse_body(request, ClassifyRequest, state.bodies)
    model, activates = vector_model(state, "classify"), body.activates
    name = state.check_model(body.model)
    params = body.sampling(state.limits.vocab_size, "/classify")
    prompts = await read_prompts(state, body, body.input, params)
    answer = functools.partial(rendering.classes_answer, name=name, model=model, activates=activates)
    return respond_whole(state, request, prompts, "classify", answer)


async def _score(state: ServerState, forms: PairForms | None, request: Request) -> Response:
    body = await parse_body(request, PairScoresRequest, state.bodies)
    name = state.check_model(body.model)
    queries, documents = body.pairs()
    prompts, scores = await _read(state, forms, body, queries, documents, "/score")
    answer = functools.partial(rendering.scores_answer, name=name, scores=scores)
    return respond_whole(state, request, prompts, "score", answer)


async def _rerank(state: ServerState, forms: PairForms | None, request: Request) -> Response:
    body = await parse_body(request, RerankRequest, state.bodies)
    name, top, texts = state.check_model(body.model), body.checked_top(), body.texts()
    documents, most = texts, body.max_tokens_per_doc
    if most is not None:
        Range(1, MAX_INT).require("max_tokens_per_doc", most, "max_tokens_per_doc")
        shorten = shortened(state.encoder.tokenizer, most)
        documents = await state.encoder.apart(lambda: [shorten(text) for text in texts])
    prompts, scores = await _read(state, forms, body, [body.query], documents, "/rerank")
    answer = functools.partial(
        rendering.ranking_answer, name=name, scores=scores, top=top,
        texts=None if body.return_documents is False else texts,
    )  # fmt: skip
    return respond_whole(state, request, prompts, "rerank", answer)


async def _read(
    state: ServerState,
    forms: PairForms | None,
    body: PairsRequest,
    queries: list[str],
    documents: list[str],
    where: str,
) -> tuple[list[PromptRecord], rendering.Scores]:
    """The prompts of queries, one or as many as documents, and of documents, and how their scores are found."""
    model = vector_model(state, "score", "classify", "embed")
    params, activates = body.sampling(state.limits.vocab_size, where), body.activates
    if forms is None:
        if body.instruction is not None:
            raise InvalidParameter(
                "instruction: an embedding model reads it in the query", param="instruction"
            )
        prompts = await read_prompts(state, body, [*queries, *documents], params, "documents")
        return prompts, functools.partial(rendering.similarities, model=model, queries=len(queries))
    if len(model.classes.names) > 1:
        raise InvalidParameter(
            f"this model has {len(model.classes.names)} labels, a score has one: use /classify"
        )
    form = await state.encoder.apart(functools.partial(forms.form, body.instruction))
    prompts = await read_pairs(state, form, body, queries, documents, params)

    def scores(record: RequestRecord) -> list[float]:
        return [model.score(vector, activates) for vector in rendering.pooled(record)]

    return prompts, scores


def vector_model(state: ServerState, *tasks: str) -> VectorModel:
    """Raises `RequestError` where the server's model is none for these tasks, or not ready."""
    state.require_admission(*tasks)
    assert state.vectors is not None
    return state.vectors


def respond_whole(
    state: ServerState, request: Request, prompts: list[PromptRecord], kind: str, answer: Callable[..., bytes]
) -> Response:
    """answer: makes a finished record an answer with an id."""
    answer_id = f"{kind}-{secrets.token_hex(12)}"
    make = functools.partial(answer, answer_id=answer_id)
    return respond(state.engine, request, prompts, rendering.WholeRenderer(make), False, answer_id)
