"""OpenAI's API before workers that speak FastChat's alone: requests into their words, and their chunks into OpenAI's answers.

/v1/chat/completions   the worker's conversation template makes a prompt of the messages ──> /worker_generate_stream
/v1/completions                                                                       ──> /worker_generate_stream
/v1/embeddings                                                                        ──> /worker_get_embeddings
"""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Any

import aiohttp
import msgspec

from lightllm.cluster.ask import read_body, write_json
from lightllm.cluster.fastchat_prompts import prompt_of, text_of
from lightllm.cluster.fastchat_protocol import Code, checked, status_of
from lightllm.cluster.request_fields import FIELDS
from lightllm.errors import InvalidParameter, RequestError

CHAT, COMPLETIONS, EMBEDDINGS = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"
BRIDGED_PATHS = frozenset({CHAT, COMPLETIONS, EMBEDDINGS})
_SAME = (
    "temperature",
    "top_p",
    "top_k",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "stop_token_ids",
)
_REFUSED = (
    "tools",
    "functions",
    "response_format",
    "logit_bias",
    "logprobs",
    "top_logprobs",
    "seed",
    "suffix",
)
"""They change the answer, and FastChat's protocol has no word for them."""
_TEMPLATE_SECONDS = 5.0
_DEFAULT_TOKENS = 512
_MAX_CHUNK = 16 << 20


class WorkerFailed(RequestError, status=502, code="worker_failed", kind="server_error"):
    """It is there, but its answer is none."""


class Bridge:
    def __init__(self, session: aiohttp.ClientSession) -> None:
        self._session = session
        self._templates: dict[tuple[str, str], dict[str, Any]] = {}
        """By worker and model, one of those that the worker serves."""

    def forget(self, url: str) -> None:
        """The worker may be another one by now."""
        for key in [key for key in self._templates if key[0] == url]:
            del self._templates[key]

    async def ask(
        self, url: str, path: str, model: str, body: bytes, headers: list[tuple[str, str]]
    ) -> Translated:
        """As soon as the worker has begun. model: the one that was dispatched, whatever the body says. Raises `InvalidParameter`,
        `WorkerFailed`, or what a connection can end with."""
        values = read_body(body)
        for name in _REFUSED:
            if values.get(name) not in (None, False, [], {}, 0):
                raise InvalidParameter(f"workers of this model do not take {name}", param=name)
        if values.get("n") not in (None, 1) or values.get("best_of") not in (None, 1):
            raise InvalidParameter("workers of this model make one answer: n must be 1", param="n")
        if path == EMBEDDINGS:
            return await self._embed(url, model, values, headers)
        params = await self._params(url, path, model, values, headers)
        response = await self._post(url + "/worker_generate_stream", params, headers)
        with _closed_if_it_fails(response):
            return await self._generated(response, path, model, values)

    async def _generated(
        self, response: aiohttp.ClientResponse, path: str, model: str, values: dict[str, Any]
    ) -> Translated:
        if response.status != 200:
            return await _refused(response)
        chunks = _chunks(response)
        render, streamed = _Renderer(path == CHAT, model, values), bool(values.get("stream"))
        first = await anext(chunks, None)
        while first is not None and not streamed and not first.get("error_code"):
            following = await anext(chunks, None)
            if following is None:
                return Translated(response, _one(render.whole(first)), 200)
            first = following
        if first is None:
            raise aiohttp.ClientPayloadError("the worker answered nothing")
        if first.get("error_code"):
            return Translated(response, _one(_error(first)), status_of(first["error_code"]))
        return Translated(response, render.events(first, chunks), 200, "text/event-stream")

    async def _params(
        self, url: str, path: str, model: str, values: dict[str, Any], headers: list[tuple[str, str]]
    ) -> dict[str, Any]:
        params = _read(path, values)
        stop = params.get("stop")
        stops = [stop] if isinstance(stop, str) else [*(stop or ())]
        params |= {"model": model, "echo": bool(values.get("echo"))}
        if path == COMPLETIONS:
            prompt = values.get("prompt", "")
            if isinstance(prompt, list) and len(prompt) == 1:
                prompt = prompt[0]
            if not isinstance(prompt, str):
                raise InvalidParameter("workers of this model take one text as prompt", param="prompt")
            return params | {"prompt": prompt, "stop": stops}
        messages = values.get("messages")
        if (
            not isinstance(messages, list)
            or not messages
            or not all(isinstance(each, dict) for each in messages)
        ):
            raise InvalidParameter("messages must be a list of messages", param="messages")
        template = await self._template(url, model, headers)
        own = template.get("stop_str")
        stops += [own] if isinstance(own, str) and own else [*(own or ())]
        if template.get("stop_token_ids"):
            params["stop_token_ids"] = [*template["stop_token_ids"], *params.get("stop_token_ids", ())]
        plain = [
            {"role": str(each.get("role")), "content": text_of(each.get("content"))} for each in messages
        ]
        return params | {"prompt": prompt_of(template, plain), "messages": plain, "stop": stops}

    async def _template(self, url: str, model: str, headers: list[tuple[str, str]]) -> dict[str, Any]:
        known = self._templates.get((url, model))
        if known is None:
            timeout = aiohttp.ClientTimeout(total=_TEMPLATE_SECONDS)
            response = await self._post(url + "/worker_get_conv_template", {"model": model}, headers, timeout)
            async with response:
                answer = await _object(response)
            known = answer.get("conv")
            if not isinstance(known, dict):
                raise WorkerFailed(f"the worker tells no conversation template: {str(answer)[:200]}")
            self._templates[url, model] = known
        return known

    async def _embed(
        self, url: str, model: str, values: dict[str, Any], headers: list[tuple[str, str]]
    ) -> Translated:
        given = values.get("input")
        texts = [given] if isinstance(given, str) else given
        if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
            raise InvalidParameter("workers of this model take texts as input", param="input")
        asked = {"model": model, "input": texts, "encoding_format": values.get("encoding_format")}
        params = checked("/worker_get_embeddings", asked)
        response = await self._post(url + "/worker_get_embeddings", params, headers)
        with _closed_if_it_fails(response):
            return await self._embedded(response, model)

    async def _embedded(self, response: aiohttp.ClientResponse, model: str) -> Translated:
        if response.status != 200:
            return await _refused(response)
        answer = await _object(response)
        if answer.get("error_code"):
            return Translated(response, _one(_error(answer)), status_of(answer["error_code"]))
        vectors = answer.get("embedding") or []
        data = [
            {"object": "embedding", "index": at, "embedding": vector} for at, vector in enumerate(vectors)
        ]
        tokens = answer.get("token_num") or 0
        whole = {
            "object": "list",
            "data": data,
            "model": model,
            "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
        }
        return Translated(response, _one(msgspec.json.encode(whole)), 200)

    async def _post(
        self, url: str, values: dict[str, Any], headers: list[tuple[str, str]], timeout: Any = None
    ) -> aiohttp.ClientResponse:
        sent = [
            *(each for each in headers if each[0].lower() != "content-type"),
            ("content-type", "application/json"),
        ]
        more = {} if timeout is None else {"timeout": timeout}
        return await self._session.post(url, data=write_json(values), headers=sent, **more)


class Translated:
    """An answer in OpenAI's words, in the form of `aiohttp.ClientResponse` as far as `Relay` looks at it."""

    content_length = None

    def __init__(
        self,
        behind: aiohttp.ClientResponse,
        parts: AsyncIterator[bytes],
        status: int,
        content_type: str = "application/json",
    ) -> None:
        self.status = status
        self.content_type = content_type
        self.headers: Mapping[str, str] = {"content-type": content_type}
        self.content = self
        self._behind = behind
        self._parts = parts

    async def iter_chunks(self) -> AsyncIterator[tuple[bytes, bool]]:
        async for part in self._parts:
            yield part, True

    async def read(self, most: int = -1) -> bytes:
        return b"".join([part async for part in self._parts])

    def close(self) -> None:
        self._behind.close()


class _Renderer:
    def __init__(self, chat: bool, model: str, values: dict[str, Any]) -> None:
        self._chat = chat
        prefix, kind = ("chatcmpl-", "chat.completion") if chat else ("cmpl-", "text_completion")
        self._kind = kind
        self._head = {"id": prefix + secrets.token_hex(12), "created": int(time.time()), "model": model}
        options = values.get("stream_options")
        self._usage = isinstance(options, dict) and bool(options.get("include_usage"))

    def whole(self, last: dict[str, Any]) -> bytes:
        """last: the last chunk, which has all."""
        finish, text = last.get("finish_reason") or "stop", str(last.get("text", ""))
        choice: dict[str, Any] = {"index": 0, "logprobs": None, "finish_reason": finish}
        choice |= {"message": {"role": "assistant", "content": text}} if self._chat else {"text": text}
        return msgspec.json.encode(
            self._head | {"object": self._kind, "choices": [choice], "usage": last.get("usage") or {}}
        )

    async def events(
        self, first: dict[str, Any], chunks: AsyncIterator[dict[str, Any]]
    ) -> AsyncIterator[bytes]:
        if self._chat:
            yield self._event({"role": "assistant", "content": ""}, None)
        usage: dict[str, Any] = {}
        sent, finish, text = 0, None, ""
        async for chunk in _with(first, chunks):
            if chunk.get("error_code"):
                yield b"data: %b\n\n" % _error(chunk)
                return
            text = str(chunk.get("text", ""))
            usage, finish = chunk.get("usage") or usage, chunk.get("finish_reason") or finish
            if len(text) > sent and not text.endswith("\ufffd"):
                yield self._event(text[sent:], None)
                sent = len(text)
        if len(text) > sent:  # characters that no further chunk has completed
            yield self._event(text[sent:], None)
        yield self._event("", finish or "stop")
        if self._usage:
            yield b"data: %b\n\n" % msgspec.json.encode(
                self._head | {"object": self._object, "choices": [], "usage": usage}
            )
        yield b"data: [DONE]\n\n"

    @property
    def _object(self) -> str:
        return "chat.completion.chunk" if self._chat else self._kind

    def _event(self, what: str | dict[str, str], finish: str | None) -> bytes:
        choice: dict[str, Any] = {"index": 0, "logprobs": None, "finish_reason": finish}
        if self._chat:
            choice["delta"] = what if isinstance(what, dict) else ({"content": what} if what else {})
        else:
            choice["text"] = what
        return b"data: %b\n\n" % msgspec.json.encode(
            self._head | {"object": self._object, "choices": [choice]}
        )


def _read(path: str, values: dict[str, Any]) -> dict[str, Any]:
    """Parameters by FastChat's names. Raises `InvalidParameter` by the client's."""
    limits = FIELDS[path].limits
    limit_name = next((name for name in limits if values.get(name) is not None), limits[-1])
    given = {name: values[name] for name in (*_SAME, "stop") if name in values}
    try:
        params = checked("/worker_generate_stream", given | {"max_new_tokens": values.get(limit_name)})
    except InvalidParameter as error:
        if error.param != "max_new_tokens":
            raise
        raise InvalidParameter(error.message.replace("max_new_tokens", limit_name), limit_name) from error
    limit = params.setdefault("max_new_tokens", _DEFAULT_TOKENS)
    if limit < 1:
        raise InvalidParameter(f"{limit_name} must be at least 1, got {limit}", param=limit_name)
    return params


async def _chunks(response: aiohttp.ClientResponse) -> AsyncIterator[dict[str, Any]]:
    """FastChat's: objects, each with a NUL byte behind it and the whole text so far. Raises what a connection can end with."""
    held = b""
    async for data in response.content.iter_any():
        held += data
        if len(held) > _MAX_CHUNK:
            raise aiohttp.ClientPayloadError("a chunk without an end")
        *whole, held = held.split(b"\0")
        for part in whole:
            if part:
                yield _chunk(part)


def _chunk(part: bytes) -> dict[str, Any]:
    try:
        chunk = msgspec.json.decode(part, type=dict[str, Any])
    except msgspec.DecodeError as error:
        raise aiohttp.ClientPayloadError("a chunk that is no object") from error
    if not isinstance(chunk.get("error_code", 0), int):
        raise aiohttp.ClientPayloadError("an error_code that is no number")
    return chunk


async def _with(first: dict[str, Any], rest: AsyncIterator[dict[str, Any]]) -> AsyncIterator[dict[str, Any]]:
    yield first
    async for each in rest:
        yield each


@contextlib.contextmanager
def _closed_if_it_fails(response: aiohttp.ClientResponse) -> Iterator[None]:
    """Else whoever gets the answer closes it."""
    try:
        yield
    except BaseException:
        response.close()
        raise


async def _refused(response: aiohttp.ClientResponse) -> Translated:
    """An answer that is no chunk: FastChat's framework refuses what it cannot read."""
    try:
        said = msgspec.json.decode(await response.read())
    except msgspec.DecodeError:
        said = None
    error = said.get("error") if isinstance(said, dict) else None
    text = error.get("message") if isinstance(error, dict) else None
    if text is None:
        text = f"the worker answered {response.status}"
    code = Code.WRONG_TYPE if response.status < 500 else Code.INTERNAL
    return Translated(response, _one(_error({"text": text, "error_code": int(code)})), response.status)


async def _object(response: aiohttp.ClientResponse) -> dict[str, Any]:
    """Raises `WorkerFailed`."""
    try:
        return msgspec.json.decode(await response.read(), type=dict[str, Any])
    except msgspec.DecodeError as error:
        raise WorkerFailed(f"the worker answered {response.status}, and no object") from error


async def _one(body: bytes) -> AsyncIterator[bytes]:
    yield body


def _error(chunk: dict[str, Any]) -> bytes:
    code = chunk.get("error_code")
    name = "context_length_exceeded" if code == 40303 else None
    error = {
        "message": chunk.get("text"),
        "type": "invalid_request_error" if code and code < 50000 else "server_error",
    }
    return msgspec.json.encode({"error": error | {"param": None, "code": name or str(code)}})
