"""LightLLM's own API: `/generate`, `/generate_stream`, `/tokens`, and what surrounds it; and TGI's, which is `POST /`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from lightllm.errors import InvalidParameter
from lightllm.http.auth import caller
from lightllm.http.body import parse_body
from lightllm.httpserver.logprobs import Logprobs
from lightllm.httpserver.native.models import (
    AbortBody,
    GenerateRequest,
    Parameters,
    ScoreRequest,
    TokensRequest,
    image_sources,
)
from lightllm.httpserver.native.rendering import NativeRenderer, ScoreRenderer
from lightllm.httpserver.native.tgi_rendering import TgiRenderer
from lightllm.httpserver.openapi import documented, plain
from lightllm.httpserver.preparing import count_images, hold_images
from lightllm.httpserver.reading.constraints import error_field
from lightllm.httpserver.reading.prompts import check_vocabulary, last
from lightllm.httpserver.record import PromptRecord
from lightllm.httpserver.rendering import Renderer
from lightllm.httpserver.responses import respond
from lightllm.httpserver.resuming import new_identity
from lightllm.httpserver.state import ServerState
from lightllm.httpserver.timings import wants_timings
from lightllm.parameter_spec import MAX_INT
from lightllm.sampling_params import SamplingParams

if TYPE_CHECKING:
    from lightllm.images.counted import CountedImages

_IMAGES = "multimodal_params.images"
MAX_COUNTED_TOKENS = 1 << 18
"""`/tokens` refuses texts that have far more."""


def native_routes(state: ServerState) -> APIRouter:
    """The routes of the native API."""
    router = APIRouter(tags=["LightLLM"])

    @router.post("/generate", **documented(GenerateRequest, "The whole answer."))
    async def generate(request: Request) -> Response:
        """Generates a text."""
        return await generate_text(state, request, stream=False)

    @router.post(
        "/generate_stream",
        **documented(GenerateRequest, "One event a token.", media_type="text/event-stream"),
    )
    async def generate_stream(request: Request) -> Response:
        """Generates a text, sent token by token as server-sent events."""
        return await generate_text(state, request, stream=True)

    @router.post("/", **documented(GenerateRequest, "The answer, in a list.", tgi=True, kind="array"))
    async def compat_generate(request: Request) -> Response:
        """Generates a text as text-generation-inference does: streamed if the body says so."""
        return await generate_text(state, request, stream=None)

    @router.post("/get_score", **documented(ScoreRequest, "The score of the conversation."))
    async def get_score(request: Request) -> Response:
        """Scores a conversation with a reward model."""
        return await _get_score(state, request)

    @router.get("/tokens", **documented(TokensRequest, "The number of tokens."))
    @router.post("/tokens", **documented(TokensRequest, "The number of tokens."))
    async def tokens(request: Request) -> Response:
        """Counts the tokens of a text."""
        body = await parse_body(request, TokensRequest, state.bodies)
        images = state.images
        sources = image_sources(body.multimodal_params, images is not None)
        parameters = body.parameters or Parameters()
        special = parameters.add_special_tokens is not False
        layout = images.layout if images else None
        ids = await state.encoder.encode(body.text, special, MAX_COUNTED_TOKENS, "text", layout=layout)
        counted = await count_images(state.engine, request, ids, sources, _IMAGES)
        return JSONResponse({"ntokens": len(ids) + (counted.extra if counted else 0)})

    @router.post("/abort_request", **documented(AbortBody, "Done, whether or not it was still running."))
    async def abort_request(request: Request) -> Response:
        """Ends a request, all its choices, from another connection. Unknown and finished ids are ignored, and so are
        requests of other keys, unless an admin key asks."""
        body = await parse_body(request, AbortBody, state.bodies)
        state.engine.abort_named(body.request_id, caller(request).key)
        return JSONResponse({"message": "Ok"})

    @router.post(
        "/flush_cache", **plain("The prefix cache is empty, but for what running requests read.", 403, 503)
    )
    async def flush_cache(request: Request) -> Response:
        """Empties the prefix cache; says how many tokens it lost. What running requests read of it stays."""
        caller(request).require_operator()
        state.view.require_ready()
        return JSONResponse({"message": "Ok", "flushed_tokens": await state.engine.flush_cache()})

    return router


async def _get_score(state: ServerState, request: Request) -> Response:
    body = await parse_body(request, ScoreRequest, state.bodies)
    state.require_admission("reward")
    limits = state.limits
    image_sources(body.multimodal_params, sees=False)
    text = body.chat
    if not isinstance(text, str):
        text = await state.encoder.render_chat(text, add_generation_prompt=False)
    if not text:  # the tokenizer might put a BOS in its place
        raise InvalidParameter("the prompt is empty", param="chat")
    prompt_ids = await state.encoder.encode(text, False, limits.max_req_total_len, "chat")
    end = state.reward_token_id
    if end is not None and prompt_ids[-1:] != [end]:
        prompt_ids.append(end)
    prompt_ids, _ = state.encoder.fit(prompt_ids, 1, limits, 1, prompt_field="chat")
    params = SamplingParams(do_sample=False, max_new_tokens=1, ignore_eos=True)
    renderer = ScoreRenderer(state.encoder.tokenizer)
    return respond(state.engine, request, [PromptRecord(prompt_ids, params)], renderer, stream=False)


async def generate_text(state: ServerState, request: Request, stream: bool | None) -> Response:
    """stream: None at `POST /`, where the body says it, and which speaks as TGI does."""
    state.require_admission()
    body = await parse_body(request, GenerateRequest, state.bodies)
    in_list = stream is None
    tgi = in_list or state.config.use_tgi_api
    stream = bool(body.stream) if stream is None else stream
    body.refuse_others(stream)
    parameters = body.parameters or Parameters()
    prompt, counted = await _prepare(state, request, body, parameters, tgi, stream)
    tokenizer, begin = state.encoder.tokenizer, ""
    if prompt.params.prompt_logprobs >= 0 and (stream or tgi):
        raise InvalidParameter("prompt_logprobs are available in whole answers only", param="prompt_logprobs")
    if parameters.return_full_text:
        if stream and not tgi:
            raise InvalidParameter("return_full_text has no place in a stream", param="return_full_text")
        begin = (
            body.inputs
            if isinstance(body.inputs, str)
            else (await state.encoder.decode_all([body.inputs]))[0]
        )
    renderer: Renderer
    timed = wants_timings(parameters)
    if tgi:
        ends = state.eos_token_ids or {tokenizer.eos_token_id}
        ends = ends | set(prompt.params.stop_token_ids)
        renderer = TgiRenderer(tokenizer, ends, begin, parameters.wants_details, in_list, timed)
    else:
        count = prompt.params.prompt_logprobs
        logprobs = Logprobs(tokenizer, count) if count >= 0 else None
        renderer = NativeRenderer(tokenizer, parameters.wants_details, begin, logprobs, timed)
    await hold_images(state.engine, request, prompt, counted)
    silence = None if tgi else 0.0  # clients written for LightLLM may take every line for an event
    identity = None if tgi else new_identity(request, "")
    return respond(state.engine, request, [prompt], renderer, stream, silence=silence, identity=identity)


async def _prepare(
    state: ServerState,
    request: Request,
    body: GenerateRequest,
    parameters: Parameters,
    tgi: bool,
    stream: bool,
) -> tuple[PromptRecord, CountedImages | None]:
    """Everything that is done before it is submitted. Raises `RequestError`."""
    limits, images = state.limits, state.images
    sources = image_sources(body.multimodal_params, images is not None)
    with error_field(parameters.asked.field):
        params = parameters.sampling(state.defaults, state.encoder.encode_part, tgi).verify(
            limits.vocab_size, native=True
        )
        await state.check_constraint(params)
    keep = parameters.kept_prompt(limits.max_req_total_len)
    if sources and keep is not None:
        raise InvalidParameter("a prompt with images cannot be cut", param="truncate")
    if stream and params.n != 1:
        raise InvalidParameter("stream api only support best_of == 1", param="best_of")
    if isinstance(body.inputs, str):
        special = parameters.add_special_tokens is not False
        layout = images.layout if images else None
        prompt_ids = await state.encoder.encode(
            body.inputs, special, limits.max_req_total_len, "inputs", keep, layout
        )
    else:
        prompt_ids = last(body.inputs, keep)
        check_vocabulary(prompt_ids, limits.vocab_size, "inputs")
    counted = await count_images(state.engine, request, prompt_ids, sources, _IMAGES)
    extra = counted.extra if counted else None
    default = state.config.default_max_new_tokens or MAX_INT
    prompt_ids, length = state.encoder.fit(
        prompt_ids, parameters.max_new_tokens, limits, default, params.n, extra=extra, clip=True
    )
    if length != params.max_new_tokens:
        params = msgspec.structs.replace(params, max_new_tokens=length).verify(limits.vocab_size, native=True)
    return PromptRecord(prompt_ids, params), counted
