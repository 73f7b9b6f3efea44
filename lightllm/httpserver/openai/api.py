"""The OpenAI API: `/v1/models`, `/v1/completions`, `/v1/chat/completions`."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from lightllm.errors import InvalidParameter
from lightllm.http.body import parse_body
from lightllm.httpserver.logprobs import Echo, Logprobs
from lightllm.httpserver.openai.chat_messages import (
    Conversation,
    must_read,
    read_conversation,
    template_variables,
)
from lightllm.httpserver.openai.chat_tools import Tools, constrained, parser_maker, read_tools
from lightllm.httpserver.openai.models import ChatRequest, CompletionRequest, OpenAIRequest
from lightllm.httpserver.openai.rendering import Answer, Extras, OpenAIRenderer
from lightllm.httpserver.openai.shapes import CHAT, COMPLETION, OLD_CHAT
from lightllm.httpserver.openapi import documented, plain
from lightllm.httpserver.preparing import count_images, hold_images
from lightllm.httpserver.reading.constraints import error_field
from lightllm.httpserver.reading.fill_in_middle import FimTokens, fim_tokens
from lightllm.httpserver.reading.prompts import (
    DEFAULT_MAX_NEW_TOKENS,
    MAX_TOKENIZED,
    Limits,
    check_vocabulary,
    last,
)
from lightllm.httpserver.record import PromptRecord
from lightllm.httpserver.responses import respond
from lightllm.httpserver.resuming import new_identity
from lightllm.httpserver.state import ServerState
from lightllm.httpserver.timings import wants_timings
from lightllm.images.source import ImageSource, openai_source
from lightllm.parsers.chat_format import Maker
from lightllm.sampling_params import SamplingParams

if TYPE_CHECKING:
    from lightllm.images.counted import CountedImages

_SEEN = frozenset({"image"})
"""Kinds of media that a model that sees takes."""
MAX_CHOICES = 2048
"""prompts * n of one request."""


def openai_routes(state: ServerState) -> APIRouter:
    """The routes of the OpenAI API."""
    router = APIRouter(prefix="/v1", tags=["OpenAI"])
    created = int(time.time())

    def card(name: str) -> dict[str, Any]:
        return {
            "id": name,
            "object": "model",
            "created": created,
            "owned_by": state.config.model_owner,
            "root": state.model_name,
            "parent": None,
            **({"task": state.config.serves} if state.config.pools else {}),
            "max_model_len": state.view.snapshot().max_req_total_len or None,
            "input_modalities": ["text", "image"] if state.images else ["text"],
        }

    @router.get("/models", **plain("The names of the one model.", openai=True))
    async def models() -> Response:
        """The models that can be named in requests."""
        return JSONResponse({"object": "list", "data": [card(name) for name in state.model_names]})

    @router.get("/models/{model:path}", **plain("The model.", 404, openai=True))
    async def model(model: str) -> Response:
        """One model."""
        if model not in state.model_names and model != state.config.model_dir:
            raise state.unknown_model(model)
        return JSONResponse(card(model))

    @router.post("/completions", **documented(CompletionRequest, "The completion.", openai=True))
    async def completions(request: Request) -> Response:
        """Completes one or several prompts."""
        return await _complete(state, request)

    @router.post("/chat/completions", **documented(ChatRequest, "The answer.", openai=True))
    async def chat_completions(request: Request) -> Response:
        """Answers a conversation."""
        return await _chat(state, request)

    return router


class PreparedChat(NamedTuple):
    """A chat that can be submitted."""

    prompt: PromptRecord
    images: CountedImages | None
    maker: Maker
    """What takes its answers apart."""


async def _chat(state: ServerState, request: Request) -> Response:
    state.require_admission()
    body = await parse_body(request, ChatRequest, state.bodies)
    model = state.check_model(body.model)
    prompt, counted, maker = await prepare_chat(state, request, body)
    identity = new_identity(request, "chatcmpl-")
    answer = Answer(*identity, model)
    extras = _extras(state, body, body.checked_logprobs())
    renderer = OpenAIRenderer(answer, OLD_CHAT if body.functions else CHAT, extras, maker.make)
    await hold_images(state.engine, request, prompt, counted)
    return respond(state.engine, request, [prompt], renderer, body.streamed, answer.id, identity=identity)


async def prepare_chat(
    state: ServerState, request: Request, body: ChatRequest, clip: bool = False
) -> PreparedChat:
    """Everything about a chat that is done before it is submitted. clip: see `PromptEncoder.fit`. Raises `RequestError`."""
    limits, encoder, images = state.limits, state.encoder, state.images
    limit, logprobs = body.limit(), body.checked_logprobs()
    default = state.config.default_max_tokens
    with error_field(body.constraint.field):
        params = body.sampling(state.defaults, encoder.encode_part, limit or default, _asked(logprobs))
        params.verify(limits.vocab_size)
        await state.check_constraint(params)
    layout, tools = images.layout if images else None, read_tools(body)
    conversation = read_conversation(body, _SEEN if images else frozenset())
    sources = _sources(conversation)
    keep = body.kept_prompt(limit, limits.max_req_total_len)
    if sources and keep is not None:
        raise InvalidParameter("a prompt with images cannot be cut", param="truncate_prompt_tokens")
    text = await render_chat(state, body, conversation, tools)
    maker = parser_maker(state.chat_format, body, tools, text)
    params = constrained(params, state.chat_format, body, tools, maker.start)
    await state.check_constraint(params)
    if maker.reads_special_tokens:
        params = msgspec.structs.replace(params, skip_special_tokens=False)
    prompt_ids = await encoder.encode(
        text, bool(body.add_special_tokens), limits.max_req_total_len, "messages", keep, layout
    )
    counted = await count_images(state.engine, request, prompt_ids, sources, "messages")
    length_field = "max_tokens" if body.max_completion_tokens is None else "max_completion_tokens"
    extra = counted.extra if counted else None
    prompt_ids, length = encoder.fit(
        prompt_ids, limit, limits, default, params.n, "messages", length_field, extra, clip
    )
    return PreparedChat(PromptRecord(prompt_ids, _with_length(params, length)), counted, maker)


async def count_chat(state: ServerState, request: Request, body: ChatRequest) -> int:
    """How many tokens the prompt of a chat has, however many those are. Raises `RequestError`."""
    images = state.images
    conversation = read_conversation(body, _SEEN if images else frozenset())
    sources = _sources(conversation)
    text = await render_chat(state, body, conversation, read_tools(body))
    layout = images.layout if images else None
    ids = await state.encoder.encode(
        text, bool(body.add_special_tokens), MAX_TOKENIZED, "messages", layout=layout
    )
    counted = await count_images(state.engine, request, ids, sources, "messages")
    return len(ids) + ((counted.extra or 0) if counted else 0)


def _sources(conversation: Conversation) -> list[ImageSource]:
    return [
        openai_source(medium.source, f"messages.{medium.message}.content.{medium.part}")
        for medium in conversation.media
    ]


async def render_chat(state: ServerState, body: ChatRequest, conversation: Conversation, tools: Tools) -> str:
    """The text that the model's template makes of a conversation. A template that has no place for tools does without them where a
    call is demanded: its form and its schema are given, as with `response_format`. Raises `InvalidParameter`."""
    try:
        return await _rendered(state, body, conversation, tools.for_template)
    except InvalidParameter as error:
        if error.param != "tools" or not tools.forced:
            raise
        return await _rendered(state, body, conversation, None)


async def _rendered(
    state: ServerState, body: ChatRequest, conversation: Conversation, tools: list[dict[str, Any]] | None
) -> str:
    return await state.encoder.render_chat(
        conversation.messages,
        tools=tools,
        add_generation_prompt=body.add_generation_prompt,
        continue_final_message=bool(body.continue_final_message),
        must_read=must_read(body),
        image_marker=state.images.layout.marker if state.images else None,
        **template_variables(body),
    )


async def _complete(state: ServerState, request: Request) -> Response:
    state.require_admission()
    body = await parse_body(request, CompletionRequest, state.bodies)
    model = state.check_model(body.model)
    records = await prepare_completion(state, body)
    identity = new_identity(request, "cmpl-")
    extras = _extras(state, body, body.logprobs, bool(body.echo))
    renderer = OpenAIRenderer(Answer(*identity, model), COMPLETION, extras)
    return respond(state.engine, request, records, renderer, body.streamed, identity[0], identity=identity)


async def prepare_completion(
    state: ServerState, body: CompletionRequest, default: int = DEFAULT_MAX_NEW_TOKENS, clip: bool = False
) -> list[PromptRecord]:
    """Everything about a completion that is done before it is submitted. default: its length where it names none; clip: see
    `PromptEncoder.fit`. Raises `RequestError`."""
    limits = state.limits
    with error_field(body.constraint.field):
        params, prompts = _checked_completion(state, body, limits.vocab_size)
        await state.check_constraint(params)
    records = []
    encoded = await _encoded(state, body, prompts, limits)
    if body.suffix:
        fim = fim_tokens(state.encoder.tokenizer.token_id)
        encoded = await _around(state, body, fim, encoded, limits)
        stops = [*params.stop_token_ids, *fim.ends]
        params = msgspec.structs.replace(params, stop_token_ids=stops)
    for prompt_ids, text in encoded:
        prompt_ids, length = state.encoder.fit(
            prompt_ids, body.output_limit(), limits, default, params.n, "prompt", "max_tokens", clip=clip
        )
        records.append(PromptRecord(prompt_ids, _with_length(params, length), text))
    return records


async def _encoded(
    state: ServerState, body: CompletionRequest, prompts: list[str] | list[list[int]], limits: Limits
) -> list[tuple[list[int], str]]:
    """Token ids and text of each prompt; the text of prompts that came as ids, or are cut, only if it is wanted back."""
    encoder = state.encoder
    keep = body.kept_prompt(body.output_limit(), limits.max_req_total_len)
    texts = [prompt for prompt in prompts if isinstance(prompt, str)]
    if texts:
        special = body.add_special_tokens is not False and not body.suffix  # BOS stands before the marks
        ids = await encoder.encode_all(texts, special, limits.max_req_total_len, "prompt", keep)
        if keep is None:
            return list(zip(ids, texts, strict=True))
    else:
        ids = [last(prompt, keep) for prompt in prompts if not isinstance(prompt, str)]
        for prompt in ids:
            check_vocabulary(prompt, limits.vocab_size, "prompt")
    return list(zip(ids, await encoder.decode_all(ids) if body.echo else [""] * len(ids), strict=True))


async def _around(
    state: ServerState,
    body: CompletionRequest,
    fim: FimTokens,
    prefixes: list[tuple[list[int], str]],
    limits: Limits,
) -> list[tuple[list[int], str]]:
    """Prompts whose answers fill the gap between each prefix and the suffix."""
    suffix = await state.encoder.encode(body.suffix or "", False, limits.max_req_total_len, "suffix")
    begin = state.encoder.tokenizer.encode("") if body.add_special_tokens is not False else []
    return [(begin + fim.prompt(prefix, suffix), text) for prefix, text in prefixes]


def _checked_completion(
    state: ServerState, body: CompletionRequest, vocab_size: int
) -> tuple[SamplingParams, list[str] | list[list[int]]]:
    """Everything about a completion that can be said before tokenization."""
    if body.suffix and body.echo:
        raise InvalidParameter("echo is not supported with suffix", param="echo")
    if body.best_of is not None and body.best_of != (body.n or 1):
        raise InvalidParameter(f"best_of must equal n, got {body.best_of}", param="best_of")
    limit = body.output_limit()
    logprobs = body.checked_logprobs()
    prompt_logprobs = logprobs if body.echo and logprobs is not None else -1
    length = DEFAULT_MAX_NEW_TOKENS if limit is None else limit
    encode = state.encoder.encode_part
    params = body.sampling(state.defaults, encode, length, _asked(logprobs), prompt_logprobs)
    params.verify(vocab_size)
    prompt = body.prompt
    prompts: Any = (
        prompt if isinstance(prompt, list) and prompt and not isinstance(prompt[0], int) else [prompt]
    )
    if len(prompts) * params.n > MAX_CHOICES:
        raise InvalidParameter(
            f"too many prompts: {len(prompts)} with n = {params.n}, at most {MAX_CHOICES} answers a request",
            param="prompt",
        )
    return params, prompts


def _with_length(params: SamplingParams, max_new_tokens: int) -> SamplingParams:
    if params.max_new_tokens == max_new_tokens:
        return params
    return msgspec.structs.replace(params, max_new_tokens=max_new_tokens).verify()


def _asked(logprobs: int | None) -> int:
    """For `SamplingParams.logprobs`: 0 saves the work."""
    return -1 if logprobs is None else logprobs


def _logprobs(state: ServerState, body: OpenAIRequest, count: int | None) -> Logprobs | None:
    if count is None:
        return None
    return Logprobs(state.encoder.tokenizer, count, bool(body.return_tokens_as_token_ids))


def _extras(state: ServerState, body: OpenAIRequest, count: int | None, echoes: bool = False) -> Extras:
    """count: of the alternatives to each token."""
    logprobs, prompt = _logprobs(state, body, count), _logprobs(state, body, body.prompt_logprobs)
    echo = Echo(logprobs, body.max_tokens == 0) if echoes else None
    options = body.stream_options
    usage = body.include_usage and body.streamed
    continuous = usage and options is not None and bool(options.continuous_usage_stats)
    token_ids = bool(body.return_token_ids)
    return Extras(logprobs, usage, continuous, token_ids, echo, prompt, wants_timings(body))
