"""A server with OpenAI's API, ours or another, asked in FastChat's words."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import msgspec

from lightllm.cluster.fastchat_protocol import WorkerError
from lightllm.cluster.upstream import FAILURES

_SAME = ("temperature", "top_p", "presence_penalty", "frequency_penalty", "stop", "echo", "logprobs")
_OURS = ("top_k", "repetition_penalty", "stop_token_ids", "best_of")
"""Extensions that vLLM, SGLang and this server have."""
_PATIENCE = aiohttp.ClientTimeout(total=None, sock_connect=5.0)


class OpenAIServer:
    """To be made and closed in the event loop."""

    def __init__(self, url: str, api_key: str | None = None, extensions: bool = True) -> None:
        """extensions: whether it takes fields that OpenAI does not have."""
        self.url = url.rstrip("/")
        self._extensions = extensions
        headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
        self._session = aiohttp.ClientSession(timeout=_PATIENCE, headers=headers)

    async def close(self) -> None:
        await self._session.close()

    async def get(self, path: str) -> Any:
        """Raises `WorkerError`."""
        try:
            async with self._session.get(self.url + path) as response:
                await _check(response)
                return await response.json(content_type=None)
        except (*FAILURES, ValueError) as error:
            raise _unreached(self.url, error) from error

    async def get_text(self, path: str) -> str:
        """Raises `WorkerError`."""
        try:
            async with self._session.get(self.url + path) as response:
                await _check(response)
                return await response.text()
        except FAILURES as error:
            raise _unreached(self.url, error) from error

    async def post(self, path: str, body: dict[str, Any]) -> Any:
        """Raises `WorkerError`."""
        try:
            async with self._session.post(self.url + path, json=body) as response:
                await _check(response)
                return await response.json(content_type=None)
        except (*FAILURES, ValueError) as error:
            raise _unreached(self.url, error) from error

    async def model_names(self) -> list[str]:
        listing = await self.get("/v1/models")
        return [str(entry["id"]) for entry in listing.get("data", ())]

    async def context_length(self) -> int | None:
        """As vLLM and this server say it in the list of models."""
        listing = await self.get("/v1/models")
        return next(
            (entry["max_model_len"] for entry in listing.get("data", ()) if entry.get("max_model_len")), None
        )

    async def complete(self, model: str, params: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
        """FastChat's chunks of `/v1/completions`. Raises `WorkerError`."""
        body = self._body(model, params)
        text, finish, usage = "", None, {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}
        logprobs: dict[str, Any] | None = None
        try:
            async with self._session.post(self.url + "/v1/completions", json=body) as response:
                await _check(response)
                async for event in _events(response):
                    if "error" in event:
                        raise WorkerError(_message(event))
                    usage = event.get("usage") or usage
                    for choice in event.get("choices", ()):
                        text += choice.get("text") or ""
                        finish = choice.get("finish_reason") or finish
                        logprobs = _joined(logprobs, choice.get("logprobs"))
                    if event.get("choices"):
                        yield _chunk(text, usage, finish, logprobs)
        except (*FAILURES, ValueError) as error:
            raise _unreached(self.url, error) from error
        yield _chunk(text, usage, finish, logprobs)

    def _body(self, model: str, params: dict[str, Any]) -> dict[str, Any]:
        names = _SAME + (_OURS if self._extensions else ())
        body = {name: params[name] for name in names if params.get(name) not in (None, [], "")}
        if body.get("top_k") in (-1, 0):
            del body["top_k"]
        if body.get("echo") is False:
            del body["echo"]
        limit = params.get("max_new_tokens") or params.get("max_tokens")
        return {
            "model": model, "prompt": params.get("prompt", ""), "stream": True, "stream_options": {"include_usage": True},
            **({"max_tokens": limit} if limit else {}), **body,
        }  # fmt: skip


def _chunk(
    text: str, usage: dict[str, Any], finish: str | None, logprobs: dict[str, Any] | None
) -> dict[str, Any]:
    counts = {name: usage.get(name, 0) for name in ("prompt_tokens", "completion_tokens", "total_tokens")}
    return {"text": text, "error_code": 0, "usage": counts, "finish_reason": finish, "logprobs": logprobs}


def _joined(before: dict[str, Any] | None, now: dict[str, Any] | None) -> dict[str, Any] | None:
    """FastChat wants all of them in each chunk, as the text."""
    if not now:
        return before
    return {name: [*((before or {}).get(name) or ()), *(now.get(name) or ())] for name in now}


async def _events(response: aiohttp.ClientResponse) -> AsyncIterator[dict[str, Any]]:
    async for line in response.content:
        if line.startswith(b"data:") and line[5:].strip() not in (b"", b"[DONE]"):
            yield msgspec.json.decode(line[5:])


async def _check(response: aiohttp.ClientResponse) -> None:
    if response.status == 200:
        return
    body = await response.content.read(1 << 16)
    try:
        said = msgspec.json.decode(body)
    except msgspec.DecodeError:
        said = {}
    error = said.get("error") if isinstance(said, dict) else None
    code = error.get("code") if isinstance(error, dict) else None
    codes = {400: 40302, 422: 40302, 429: 42903, 503: 42903, 404: 40301}
    number = 40303 if code == "context_length_exceeded" else codes.get(response.status, 50001)
    raise WorkerError(_message(said) if said else f"the server answered {response.status}", number)


def _message(said: Any) -> str:
    error = said.get("error") if isinstance(said, dict) else None
    if isinstance(error, dict):
        return str(error.get("message", "the server failed"))
    return str(error or (said.get("message") if isinstance(said, dict) else None) or "the server failed")


def _unreached(url: str, error: BaseException) -> WorkerError:
    return WorkerError(f"the server at {url} could not be reached: {error or type(error).__name__}", 50005)
