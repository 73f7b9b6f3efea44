"""Anthropic's API: `/v1/messages`, `/v1/messages/count_tokens`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from lightllm.errors import PromptTooLong
from lightllm.http.body import parse_body
from lightllm.httpserver.anthropic.models import CountTokensRequest, MessagesRequest
from lightllm.httpserver.anthropic.reading import as_chat
from lightllm.httpserver.anthropic.rendering import PING, MessagesRenderer
from lightllm.httpserver.openai.api import count_chat, prepare_chat
from lightllm.httpserver.openapi import documented
from lightllm.httpserver.preparing import hold_images
from lightllm.httpserver.responses import respond
from lightllm.httpserver.resuming import new_identity
from lightllm.httpserver.state import ServerState
from lightllm.httpserver.timings import wants_timings


def messages_routes(state: ServerState) -> APIRouter:
    """The routes of Anthropic's API."""
    router = APIRouter(prefix="/v1", tags=["Anthropic"])

    @router.post("/messages", **documented(MessagesRequest, "The message.", anthropic=True))
    async def messages(request: Request) -> Response:
        """Answers a conversation."""
        return await _message(state, request)

    @router.post(
        "/messages/count_tokens",
        **documented(CountTokensRequest, "How many tokens the prompt has.", anthropic=True),
    )
    async def count_tokens(request: Request) -> Response:
        """Counts the tokens of a conversation, with its tools and what the template adds."""
        state.require_admission()
        body = await parse_body(request, CountTokensRequest, state.bodies)
        state.check_model(body.model)
        with _in_anthropics_words():
            return JSONResponse({"input_tokens": await count_chat(state, request, as_chat(body))})

    return router


async def _message(state: ServerState, request: Request) -> Response:
    state.require_admission()
    body = await parse_body(request, MessagesRequest, state.bodies)
    model = state.check_model(body.model)
    with _in_anthropics_words():
        prompt, counted, maker = await prepare_chat(state, request, as_chat(body), clip=True)
    await hold_images(state.engine, request, prompt, counted)
    identity = new_identity(request, "msg_")
    clipped = prompt.params.max_new_tokens < body.max_tokens
    renderer = MessagesRenderer(identity[0], model, maker.make, clipped, wants_timings(body))
    return respond(
        state.engine, request, [prompt], renderer, bool(body.stream), identity[0], ping=PING,
        opening=[renderer.opening(len(prompt.prompt_ids))], identity=identity,
    )  # fmt: skip


@contextmanager
def _in_anthropics_words() -> Iterator[None]:
    """Clients know an overflow by its text, and read the numbers in it: they shorten the conversation, or ask for less."""
    try:
        yield
    except PromptTooLong as error:
        raise PromptTooLong(_overflow(error), param=error.param) from error


def _overflow(error: PromptTooLong) -> str:
    if error.counts is None:
        return f"prompt is too long: {error.message}"
    prompt, output, limit = error.counts
    if prompt >= limit:
        return f"prompt is too long: {prompt} tokens > {limit} maximum"
    return (
        f"input length and `max_tokens` exceed context limit: {prompt} + {output} > {limit}, decrease input length or "
        "`max_tokens` and try again"
    )
