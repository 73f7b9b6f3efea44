"""`/v1/responses`: OpenAI's second way to ask for an answer. It is answered as a chat (`openai_api.prepare_chat`) is, in another
shape."""

from __future__ import annotations

import secrets
import time
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from lightllm.errors import PreviousResponseNotFound
from lightllm.http.body import parse_body
from lightllm.httpserver.openai_api import prepare_chat
from lightllm.httpserver.openai_responses_input import chat_request, in_their_words
from lightllm.httpserver.openai_responses_models import ResponsesRequest
from lightllm.httpserver.openai_responses_rendering import ResponsesRenderer
from lightllm.httpserver.openapi import documented
from lightllm.httpserver.preparing import hold_images
from lightllm.httpserver.responses import respond
from lightllm.httpserver.state import ServerState
from lightllm.sampling_params import SamplingParams


def responses_routes(state: ServerState) -> APIRouter:
    router = APIRouter(prefix="/v1", tags=["OpenAI"])

    @router.post("/responses", **documented(ResponsesRequest, "The response.", openai=True))
    async def create(request: Request) -> Response:
        """Answers an input: a text, or items."""
        return await _create(state, request)

    return router


async def _create(state: ServerState, request: Request) -> Response:
    state.require_admission()
    body = await parse_body(request, ResponsesRequest, state.bodies)
    model = state.check_model(body.model)
    if body.previous_response_id is not None:
        raise PreviousResponseNotFound(
            "no responses are kept here: send the items of the conversation as input",
            param="previous_response_id",
        )
    chat = chat_request(body)
    with in_their_words(chat.places):
        prompt, counted, maker = await prepare_chat(state, request, chat.request)
    response_id = f"resp_{secrets.token_hex(24)}"
    renderer = ResponsesRenderer(head(body, response_id, model, prompt.params), maker.make)
    with in_their_words(chat.places):
        await hold_images(state.engine, request, prompt, counted)
    return respond(state.engine, request, [prompt], renderer, bool(body.stream), response_id)


def head(body: ResponsesRequest, response_id: str, model: str, params: SamplingParams) -> dict[str, Any]:
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
        "background": False,
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
        "store": False,
        "temperature": params.temperature,
        "text": {"format": form.model_dump(by_alias=True, exclude_none=True) if form else {"type": "text"}},
        "tool_choice": body.tool_choice or "auto",
        "tools": tools,
        "top_logprobs": 0,
        "top_p": params.top_p,
        "truncation": "disabled",
        "usage": None,
        "user": body.user,
    }
