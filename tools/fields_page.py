"""docs/fields.md: what becomes of every field that a request may have, on the routes that generate."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from pydantic import BaseModel

from lightllm.httpserver.native.models import GenerateRequest, Parameters
from lightllm.httpserver.openai.models import ChatRequest, CompletionRequest
from lightllm.httpserver.openai_responses.models import (
    RESPONSES_HARMLESS,
    RESPONSES_REFUSED,
    ResponsesRequest,
)
from lightllm.httpserver.pooling.models import (
    POOLING_HARMLESS,
    POOLING_REFUSED,
    ClassifyRequest,
    EmbeddingsRequest,
    PairScoresRequest,
    RerankRequest,
)
from lightllm.httpserver.reading.other_fields import (
    NATIVE_BESIDE,
    NATIVE_HARMLESS,
    NATIVE_REFUSED,
    OPENAI_HARMLESS,
    OPENAI_REFUSED,
    Refused,
)

_INTRODUCTION = (
    "What becomes of each field, by its name. **used**: it has the effect that its API says ([api.md](api.md)). **refused**: 400 "
    "with its name, unless it asks for what happens anyway: null, false, what is empty, and the values in brackets. **no "
    "effect**: accepted, because the answer is the same with it. A dash: the name is not known there; it is accepted, and named "
    "once in the log. Fields inside `messages`, `tools` and other objects are not listed.",
    "`POST /`, and with `--use_tgi_api` `/generate` too, take the fields of `/generate`.",
)


class Route(NamedTuple):
    """The fields of one body."""

    title: str
    models: tuple[type[BaseModel], ...]
    """Whose fields are used."""
    refused: Mapping[str, Refused]
    harmless: frozenset[str]
    refused_first: Mapping[str, Refused] = {}
    """Though a model has them."""


ROUTES = (
    Route("/v1/chat/completions", (ChatRequest,), OPENAI_REFUSED, OPENAI_HARMLESS),
    Route(
        "/v1/responses",
        (ResponsesRequest, ChatRequest),
        OPENAI_REFUSED,
        OPENAI_HARMLESS - set(ResponsesRequest.model_fields) | RESPONSES_HARMLESS,
        RESPONSES_REFUSED,
    ),
    Route("/v1/completions", (CompletionRequest,), OPENAI_REFUSED, OPENAI_HARMLESS),
    Route("/generate, in `parameters`", (Parameters,), NATIVE_REFUSED, NATIVE_HARMLESS),
    Route("/generate, beside `inputs`", (GenerateRequest,), NATIVE_BESIDE, NATIVE_HARMLESS),
)

VECTOR_ROUTES = tuple(
    Route(title, (model,), POOLING_REFUSED, POOLING_HARMLESS)
    for title, model in (
        ("/v1/embeddings", EmbeddingsRequest),
        ("/classify", ClassifyRequest),
        ("/score", PairScoresRequest),
        ("/rerank", RerankRequest),
    )
)


def fields_page(notice: str) -> str:
    """notice: the first line."""
    lines = [
        notice,
        "# Fields of requests",
        "",
        *(textwrap.fill(paragraph, 120, break_on_hyphens=False) + "\n" for paragraph in _INTRODUCTION),
        *_table(ROUTES),
        "",
        "## Routes for vectors",
        "",
        *_table(VECTOR_ROUTES),
    ]
    return "\n".join(lines) + "\n"


def _table(routes: Sequence[Route]) -> list[str]:
    names = {name for route in routes for name in _names(route)}
    titles = [f"`{title}`" if "," not in title else f"`{title.replace(',', '`,', 1)}" for title, *_ in routes]
    return [
        f"| field | {' | '.join(titles)} |",
        f"|---|{'---|' * len(routes)}",
        *(f"| `{name}` | {' | '.join(_fate(route, name) for route in routes)} |" for name in sorted(names)),
    ]


def _names(route: Route) -> set[str]:
    used = {name for model in route.models for name in model.model_fields}
    return used | route.refused.keys() | route.harmless


def _fate(route: Route, name: str) -> str:
    if name in route.harmless:
        return "no effect"
    rule = route.refused_first.get(name)
    if rule is None and any(name in model.model_fields for model in route.models):
        return "used"
    rule = rule or route.refused.get(name)
    if rule is None:
        return "—"
    neutral = f" [{', '.join(map(str, rule.neutral))}]" if rule.neutral else ""
    return f"refused{neutral}" + (f": use {rule.instead}" if rule.instead else "")
