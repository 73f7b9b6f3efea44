"""`/v1/responses`: OpenAI's second way to ask for an answer. It is answered as a chat (`openai.api.prepare_chat`) is, in another
shape; a response that is kept can be followed, read and deleted by the caller who asked for it."""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from lightllm.errors import InvalidParameter, UnknownResponse
from lightllm.http.auth import caller
from lightllm.http.body import parse_body
from lightllm.httpserver.logprobs import Logprobs
from lightllm.httpserver.openai.api import PreparedChat, count_chat, prepare_chat
from lightllm.httpserver.openai_responses.background import run_apart
from lightllm.httpserver.openai_responses.events import EventStream
from lightllm.httpserver.openai_responses.history import earlier_items, is_reference, with_items_of_references
from lightllm.httpserver.openai_responses.input import (
    ChatOfResponse,
    chat_request,
    in_their_words,
    input_items,
)
from lightllm.httpserver.openai_responses.models import InputItem, ResponsesRequest
from lightllm.httpserver.openai_responses.rendering import ResponsesRenderer
from lightllm.httpserver.openai_responses.store import ResponseStore, StoredInput, new_id
from lightllm.httpserver.openai_responses.truncation import prepare_what_fits
from lightllm.httpserver.openapi import documented, plain
from lightllm.httpserver.preparing import hold_images
from lightllm.httpserver.rendering import json_bytes
from lightllm.httpserver.responses import respond
from lightllm.httpserver.state import ServerState
from lightllm.httpserver.timings import wants_timings
from lightllm.sampling_params import SamplingParams

_MOST_LISTED = 100
"""Items in one page of an input."""
_CANCEL_SECONDS = 5.0
"""How long a caller waits for the end of what it cancels."""
_LOOK_SECONDS = 0.02


def responses_routes(state: ServerState) -> APIRouter:
    router = APIRouter(prefix="/v1", tags=["OpenAI"])

    @router.post("/responses", **documented(ResponsesRequest, "The response.", openai=True))
    async def create(request: Request) -> Response:
        """Answers an input: a text, or items."""
        return await _create(state, request)

    @router.post("/responses/input_tokens", **documented(ResponsesRequest, "Their number.", openai=True))
    async def count(request: Request) -> Response:
        """Counts the tokens of an input as its response would, with its tools and what the template adds."""
        return await _count(state, request)

    @router.get("/responses/{response_id}", **plain("The response.", 400, 404, openai=True))
    async def retrieve(request: Request, response_id: str) -> Response:
        """A response that is kept, also while it is made. With `stream` its events: of one made with `background` and `stream`,
        those behind the number `starting_after`."""
        data = await _stored(state, request, response_id)
        if request.query_params.get("stream", "false").lower() not in ("false", "0"):
            return _event_stream(state, request, response_id)
        return _json(data)

    @router.delete("/responses/{response_id}", **plain("It is deleted.", 404, openai=True))
    async def delete(request: Request, response_id: str) -> Response:
        """Deletes a response; one that is still made in the background is ended."""
        response = msgspec.json.decode(await _stored(state, request, response_id))
        await asyncio.to_thread(_store(state, response_id).delete, caller(request).owner, response_id)
        if response["background"]:
            state.engine.abort_named(response_id, caller(request).key)
        return JSONResponse({"id": response_id, "object": "response", "deleted": True})

    @router.get("/responses/{response_id}/input_items", **plain("Items of the input.", 400, 404, openai=True))
    async def list_input(request: Request, response_id: str) -> Response:
        """What a response was asked: `limit` items behind `after`, the latest first unless `order` is asc."""
        store, owner = _store(state, response_id), caller(request).owner
        asked = await asyncio.to_thread(store.asked, owner, response_id)
        if asked is None:
            raise _unknown(response_id)
        return _page(request, asked.items)

    @router.post("/responses/{response_id}/cancel", **plain("The response.", 400, 404, openai=True))
    async def cancel(request: Request, response_id: str) -> Response:
        """Ends a response that is made in the background."""
        return _json(await _cancel(state, request, response_id))

    return router


async def _create(state: ServerState, request: Request) -> Response:
    state.require_admission()
    body = await parse_body(request, ResponsesRequest, state.bodies)
    model = state.check_model(body.model)
    store = state.responses if body.store is not False else None
    if body.background and store is None:
        without = "store" if body.store is False else "--response_store_mb 0"
        raise InvalidParameter(f"background is not supported with {without}", param="background")
    owner = caller(request).owner
    body, chat = await _read(state, body, owner)
    (prompt, counted, maker), chat = await _prepare(state, request, body, chat)
    response_id = new_id()
    begin = head(body, response_id, model, prompt.params, store is not None)
    if store is not None:
        asked = StoredInput(input_items(body, response_id), body.previous_response_id)
        kept = await asyncio.to_thread(store.begin, owner, response_id, asked, json_bytes(begin))
        if not kept and body.background:
            raise InvalidParameter(
                "the input is too large to be kept (--response_store_mb)", param="background"
            )
        if not kept:
            store, begin["store"] = None, False
    keep = functools.partial(store.finish, owner, response_id) if store is not None else None
    count = chat.request.checked_logprobs()
    logprobs = None if count is None else Logprobs(state.encoder.tokenizer, count)
    renderer = ResponsesRenderer(begin, maker.make, keep, logprobs, wants_timings(chat.request))
    try:
        with in_their_words(chat.places):
            await hold_images(state.engine, request, prompt, counted)
    except BaseException:
        if store is not None:
            store.delete(owner, response_id)
        raise
    streamed = bool(body.stream or body.background)
    opening = renderer.opening() if streamed else ()
    response = respond(state.engine, request, [prompt], renderer, streamed, response_id, opening=opening)
    if store is not None:
        response = _KeptResponse(response, renderer, functools.partial(store.delete, owner, response_id))
    if not body.background or store is None:
        return response
    if not body.stream:
        await run_apart(response, request.scope)
        return _json(json_bytes(begin))
    await run_apart(response, request.scope, functools.partial(store.append, owner, response_id))
    read = functools.partial(store.events, owner, response_id)
    return EventStream(read, -1, state.config.sse_keep_alive)


async def _count(state: ServerState, request: Request) -> Response:
    state.require_admission()
    body = await parse_body(request, ResponsesRequest, state.bodies)
    state.check_model(body.model)
    body, chat = await _read(state, body, caller(request).owner)
    if body.truncation == "auto":
        _, chat = await _prepare(state, request, body, chat)
    with in_their_words(chat.places):
        count = await count_chat(state, request, chat.request)
    return JSONResponse({"object": "response.input_tokens", "input_tokens": count})


async def _read(
    state: ServerState, body: ResponsesRequest, owner: str
) -> tuple[ResponsesRequest, ChatOfResponse]:
    """The body without references, and the chat that it asks for."""
    earlier: list[InputItem] = []
    if body.previous_response_id is not None:
        earlier = await asyncio.to_thread(earlier_items, state.responses, owner, body.previous_response_id)
    if not isinstance(body.input, str) and any(map(is_reference, body.input)):
        items = await asyncio.to_thread(with_items_of_references, state.responses, owner, body.input)
        body = body.model_copy(update={"input": items})
    return body, chat_request(body, earlier)


async def _prepare(
    state: ServerState, request: Request, body: ResponsesRequest, chat: ChatOfResponse
) -> tuple[PreparedChat, ChatOfResponse]:
    """With `truncation` auto what is left of the chat."""

    async def prepare(chat: ChatOfResponse) -> PreparedChat:
        with in_their_words(chat.places):
            return await prepare_chat(state, request, chat.request)

    if body.truncation == "auto":
        return await prepare_what_fits(chat, prepare)
    return await prepare(chat), chat


class _KeptResponse(Response):
    """An answer that is kept, unless it comes to no end: its client has left, or it has failed."""

    def __init__(self, response: Response, renderer: ResponsesRenderer, forget: Callable[[], object]) -> None:
        self.status_code = 200
        self.background = None
        self._response = response
        self._renderer = renderer
        self._forget = forget

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self._response(scope, receive, send)
        finally:
            if not self._renderer.ended:
                self._forget()


def _store(state: ServerState, response_id: str) -> ResponseStore:
    """Raises `UnknownResponse` where nothing is kept."""
    if state.responses is None:
        raise _unknown(response_id)
    return state.responses


async def _stored(state: ServerState, request: Request, response_id: str) -> bytes:
    """Raises `UnknownResponse`."""
    store = _store(state, response_id)
    data = await asyncio.to_thread(store.response, caller(request).owner, response_id)
    if data is None:
        raise _unknown(response_id)
    return data


def _event_stream(state: ServerState, request: Request, response_id: str) -> Response:
    after = request.query_params.get("starting_after", "-1")
    if not (after.isascii() and after.removeprefix("-").isdigit() and len(after) < 10 and int(after) >= -1):
        raise InvalidParameter("starting_after must be the number of an event", param="starting_after")
    read = functools.partial(_store(state, response_id).events, caller(request).owner, response_id)
    if read(0, 1) is None:
        raise InvalidParameter(
            "the stream of a response can be taken up again only if it was made with background and stream",
            param="stream",
        )
    return EventStream(read, int(after), state.config.sse_keep_alive)


async def _cancel(state: ServerState, request: Request, response_id: str) -> bytes:
    """The response as it has ended. Another worker may make it, so its file tells when it has."""
    loop = asyncio.get_running_loop()
    end = loop.time() + _CANCEL_SECONDS
    data = await _stored(state, request, response_id)
    if not msgspec.json.decode(data)["background"]:
        raise InvalidParameter("only a response that is made in the background can be cancelled")
    while msgspec.json.decode(data)["status"] == "in_progress" and loop.time() < end:
        state.engine.abort_named(response_id, caller(request).key)
        await asyncio.sleep(_LOOK_SECONDS)
        data = await _stored(state, request, response_id)
    return data


def _page(request: Request, items: Sequence[dict[str, Any]]) -> Response:
    query = request.query_params
    order, limit, after = query.get("order", "desc"), query.get("limit", "20"), query.get("after")
    if order not in ("asc", "desc"):
        raise InvalidParameter("order must be asc or desc", param="order")
    if not (limit.isascii() and limit.isdigit() and len(limit) < 4 and 1 <= int(limit) <= _MOST_LISTED):
        raise InvalidParameter(f"limit must be in [1, {_MOST_LISTED}]", param="limit")
    listed = list(items if order == "asc" else reversed(items))
    if after is not None:
        places = [place for place, item in enumerate(listed) if item["id"] == after]
        if not places:
            raise InvalidParameter(f"there is no item {after[:80]!r}", param="after")
        listed = listed[places[0] + 1 :]
    data = listed[: int(limit)]
    first, last = (data[0]["id"], data[-1]["id"]) if data else (None, None)
    return JSONResponse(
        {
            "object": "list",
            "data": data,
            "first_id": first,
            "last_id": last,
            "has_more": len(listed) > len(data),
        }
    )


def _unknown(response_id: str) -> UnknownResponse:
    return UnknownResponse(f"Response with id {response_id[:80]!r} not found.")


def _json(data: bytes) -> Response:
    return Response(data, media_type="application/json")


def head(
    body: ResponsesRequest, response_id: str, model: str, params: SamplingParams, stored: bool
) -> dict[str, Any]:
    """The response object before there is an answer; params: those that it is made with."""
    form = body.text.format if body.text else None
    tools = [tool.model_dump() for tool in body.tools or ()]
    reasoning = body.reasoning
    return {
        "id": response_id,
        "object": "response",
        "created_at": int(time.time()),
        "completed_at": None,
        "status": "in_progress",
        "background": bool(body.background),
        "error": None,
        "incomplete_details": None,
        "instructions": body.instructions,
        "max_output_tokens": body.max_output_tokens,
        "max_tool_calls": body.max_tool_calls,
        "metadata": body.metadata or {},
        "model": model,
        "output": [],
        "parallel_tool_calls": body.parallel_tool_calls is not False,
        "previous_response_id": body.previous_response_id,
        "prompt_cache_key": body.prompt_cache_key,
        "reasoning": {"effort": reasoning.effort if reasoning else None, "summary": None},
        "safety_identifier": body.safety_identifier,
        "service_tier": "default",
        "store": stored,
        "temperature": params.temperature,
        "text": {"format": form.model_dump(by_alias=True, exclude_none=True) if form else {"type": "text"}},
        "tool_choice": body.tool_choice or "auto",
        "tools": tools,
        "top_logprobs": body.top_logprobs or 0,
        "top_p": params.top_p,
        "truncation": body.truncation or "disabled",
        "usage": None,
        "user": body.user,
    }
