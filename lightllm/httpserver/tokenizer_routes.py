"""What the tokenizer does, for clients that count, cut or compare tokens themselves: `/tokenize`, `/detokenize` and
`/tokenizer_info` as vLLM and SGLang have them, and the render routes, which end before anything is generated."""

from __future__ import annotations

import asyncio
import functools
import json
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Request
from pydantic import Field
from starlette.responses import Response

from lightllm.errors import InvalidParameter, PromptTooLong
from lightllm.http.body import parse_body
from lightllm.httpserver.openai.api import prepare_chat, prepare_completion, render_chat
from lightllm.httpserver.openai.chat_messages import read_conversation
from lightllm.httpserver.openai.chat_tools import read_tools
from lightllm.httpserver.openai.models import ChatRequest, CompletionRequest, Message, OpenAIRequest, Tool
from lightllm.httpserver.openapi import documented, plain
from lightllm.httpserver.reading.field_types import MAX_STRINGS, Body, Bool, Scalar, Text, TokenIds
from lightllm.httpserver.reading.prompts import INLINE_CHARACTERS, MAX_TOKENIZED, check_vocabulary
from lightllm.httpserver.reading.sampling_fields import names
from lightllm.httpserver.record import PromptRecord
from lightllm.httpserver.rendering import json_bytes
from lightllm.httpserver.state import ServerState
from lightllm.model_folder.json_files import read_json_object
from lightllm.sampling_params import SamplingParams

_TEXTS = Annotated[list[Text], Field(fail_fast=True, min_length=1, max_length=MAX_STRINGS)]
_LISTS = Annotated[list[TokenIds], Field(fail_fast=True, min_length=1, max_length=MAX_STRINGS)]


class TokenizeRequest(Body):
    """Body of `/tokenize`: a text, several texts, or a conversation."""

    model: Text | None = None
    prompt: Text | _TEXTS | None = Field(default=None, description="A text, or several.")
    messages: Annotated[list[Message], Field(fail_fast=True, min_length=1, max_length=MAX_STRINGS)] | None = Field(
        default=None, description="A conversation, instead of prompt."
    )  # fmt: skip
    add_special_tokens: Bool | None = Field(
        default=None,
        description="BOS and the like; by default those of a text, and none beside what the chat template writes.",
    )
    return_token_strs: Bool | None = Field(default=None, description="The text of each token as well.")
    add_generation_prompt: Bool | None = None
    continue_final_message: Bool | None = None
    chat_template_kwargs: dict[str, Scalar | None] | None = None
    tools: Annotated[list[Tool], Field(fail_fast=True, max_length=1024)] | None = None
    chat_template: Any = None

    def check(self) -> None:
        """Raises `InvalidParameter` for combinations that make no sense."""
        if (self.prompt is None) == (self.messages is None):
            raise InvalidParameter("give prompt or messages, one of them", param="prompt")
        if self.chat_template:
            raise InvalidParameter(
                "chat_template is not supported: use --chat_template of the server", param="chat_template"
            )

    def chat(self) -> ChatRequest:
        """The conversation as a chat would have it."""
        shared = (
            "messages",
            "add_generation_prompt",
            "continue_final_message",
            "chat_template_kwargs",
            "tools",
        )
        return ChatRequest.model_construct(**{name: getattr(self, name) for name in shared})


class DetokenizeRequest(Body):
    """Body of `/detokenize`."""

    model: Text | None = None
    tokens: TokenIds | _LISTS = Field(description="Token ids, or several lists of them.")
    skip_special_tokens: Bool | None = Field(default=None, description="Leave special tokens out.")


def tokenizer_routes(state: ServerState) -> APIRouter:
    """Need no model, only its tokenizer."""
    router = APIRouter(tags=["Tokenizer"])

    @router.post("/v1/tokenize", **documented(TokenizeRequest, "The token ids.", openai=True))
    @router.post("/tokenize", **documented(TokenizeRequest, "The token ids."))
    async def tokenize(request: Request) -> Response:
        """Token ids of a text, of several, or of a conversation as the chat template writes it."""
        return await _tokenize(state, await parse_body(request, TokenizeRequest, state.bodies))

    @router.post("/v1/detokenize", **documented(DetokenizeRequest, "The text.", openai=True))
    @router.post("/detokenize", **documented(DetokenizeRequest, "The text."))
    async def detokenize(request: Request) -> Response:
        """The text of token ids. Bytes that are no character become U+FFFD."""
        body = await parse_body(request, DetokenizeRequest, state.bodies)
        state.check_model(body.model)
        several = bool(body.tokens) and isinstance(body.tokens[0], list)
        lists: Any = body.tokens if several else [body.tokens]
        for ids in lists:
            check_vocabulary(ids, state.limits.vocab_size, "tokens")
        texts = await state.encoder.decode_all(lists, bool(body.skip_special_tokens))
        text = texts if several else texts[0]
        return _json({"prompt": text, "text": text})

    @router.get("/tokenizer_info", **plain("The tokenizer's settings."))
    async def tokenizer_info() -> Response:
        """What tokenizer_config.json says, with the special tokens and the chat template that are in use."""
        return Response(await asyncio.to_thread(info), media_type="application/json")

    @functools.cache
    def info() -> bytes:
        return json_bytes(_info(state))

    @router.post(
        "/v1/completions/render",
        **documented(CompletionRequest, "One entry a prompt.", openai=True, kind="array"),
    )
    async def render_completion(request: Request) -> Response:
        """What a completion would compute: token ids and sampling parameters of each prompt."""
        body = await parse_body(request, CompletionRequest, state.bodies)
        model = state.check_model(body.model)
        records = await prepare_completion(state, body)
        return _json([_rendered("cmpl", model, body, record) for record in records])

    @router.post("/v1/chat/completions/render", **documented(ChatRequest, "The prompt.", openai=True))
    async def render_conversation(request: Request) -> Response:
        """What a chat would compute: the token ids of the rendered conversation, and sampling parameters."""
        body = await parse_body(request, ChatRequest, state.bodies)
        model = state.check_model(body.model)
        read_conversation(
            body
        )  # images are refused before they are fetched: their tokens are not those of a text
        record = (await prepare_chat(state, request, body)).prompt
        return _json(_rendered("chatcmpl", model, body, record))

    return router


async def _tokenize(state: ServerState, body: TokenizeRequest) -> Response:
    body.check()
    state.check_model(body.model)
    several = isinstance(body.prompt, list)
    if body.messages is not None:
        chat = body.chat()
        if chat.add_generation_prompt is None:
            chat.add_generation_prompt = not chat.continue_final_message
        texts, field = [await render_chat(state, chat, read_conversation(chat), read_tools(chat))], "messages"
        special = bool(body.add_special_tokens)
    else:
        prompt: Any = body.prompt
        texts, field = prompt if several else [prompt], "prompt"
        special = body.add_special_tokens is not False
    try:
        lists = await state.encoder.encode_all(texts, special, MAX_TOKENIZED, "text")
    except PromptTooLong as error:
        raise PromptTooLong(error.message, param=field) from error
    answer: dict[str, Any] = {
        "count": [len(ids) for ids in lists] if several else len(lists[0]),
        "max_model_len": state.limits.max_req_total_len or None,
        "tokens": lists if several else lists[0],
        "token_strs": None,
    }
    if body.return_token_strs:
        strings = await _in_thread_if_large(sum(map(len, lists)), functools.partial(_strings, state, lists))
        answer["token_strs"] = strings if several else strings[0]
    return _json(answer)


def _strings(state: ServerState, lists: Sequence[Sequence[int]]) -> list[list[str]]:
    text = state.encoder.tokenizer.token_text
    return [[text(token_id) for token_id in ids] for ids in lists]


async def _in_thread_if_large(tokens: int, work: functools.partial[Any]) -> Any:
    return work() if tokens <= INLINE_CHARACTERS else await asyncio.to_thread(work)


def _info(state: ServerState) -> dict[str, Any]:
    tokenizer = state.encoder.tokenizer
    template = tokenizer.chat_templates.source()
    stated = read_json_object(Path(state.config.model_dir or "") / "tokenizer_config.json")
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": None,
        "eos_token": None,
        "pad_token": None,
        **stated,
        **tokenizer.special_tokens,
        "chat_template": template and _standing_alone(template, tokenizer.special_tokens),
    }


def _standing_alone(template: str, special_tokens: dict[str, str]) -> str:
    """A template that need not be told the special tokens that it writes: clients that render it may not know that it wants
    them (lm-eval)."""
    named = {name: content for name, content in special_tokens.items() if name in template}
    known = (
        f"{{% if {name} is not defined %}}{{% set {name} = {json.dumps(content, ensure_ascii=False)} %}}{{% endif %}}"
        for name, content in named.items()
    )
    return "".join(known) + template


def _rendered(kind: str, model: str, body: OpenAIRequest, record: PromptRecord) -> dict[str, Any]:
    """vLLM's request of tokens: what a router needs to find a cached prefix, or to send the prompt on as token ids."""
    return {
        "request_id": f"{kind}-{secrets.token_hex(12)}",
        "token_ids": record.prompt_ids,
        "features": None,
        "sampling_params": _stated(record.params),
        "model": model,
        "stream": body.streamed,
        "stream_options": body.stream_options and body.stream_options.model_dump(exclude_none=True),
        "priority": record.params.priority,
    }


def _stated(params: SamplingParams) -> dict[str, Any]:
    """The parameters by their names on /v1, those that are not as they are by default, and always the limit."""
    defaults = SamplingParams()
    values = {name: (getattr(params, own), getattr(defaults, own)) for name, own in names("openai").items()}
    return {
        name: value for name, (value, default) in values.items() if value != default or name == "max_tokens"
    }


def _json(answer: object) -> Response:
    return Response(msgspec.json.encode(answer), media_type="application/json")
