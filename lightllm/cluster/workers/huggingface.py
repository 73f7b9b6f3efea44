"""Models behind APIs: Hugging Face's Inference API and endpoints, text-generation-inference, or any API like OpenAI's."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Literal

import msgspec
from huggingface_hub import AsyncInferenceClient, ChatCompletionInputStreamOptions
from huggingface_hub.errors import HfHubHTTPError, InferenceTimeoutError, OverloadedError, ValidationError

from lightllm.cluster.fastchat_protocol import WorkerError
from lightllm.cluster.workers.base import BaseModelWorker
from lightllm.cluster.workers.config import WorkerConfig
from lightllm.cluster.workers.conversations import CONVERSATIONS
from lightllm.errors import InvalidOption

_HTTP_ERROR: type[Exception] = next(
    base for base in HfHubHTTPError.__mro__ if base.__name__ == "HTTPError" and issubclass(base, Exception)
)
"""Of the HTTP library that huggingface_hub has in this version: what a connection ends with, too."""
_FAILURES: tuple[type[Exception], ...] = (
    _HTTP_ERROR,
    HfHubHTTPError,
    InferenceTimeoutError,
    OverloadedError,
    ValidationError,
    OSError,
    ValueError,
)


class ModelInfo(msgspec.Struct, forbid_unknown_fields=True):
    """Of one model in `--model_info_file`: FastChat's fields, and `api`."""

    model_path: str
    """Its name at the API; the model's repository for Hugging Face's own."""
    api_base: str = ""
    """URL; "": Hugging Face's."""
    token: str = ""
    context_length: int = 2048
    model_names: str = ""
    """Names to register, separated by commas; "": its name in the file."""
    conv_template: str = ""
    api: Literal["text_generation", "chat"] = "text_generation"
    """Which of the two the API has: prompts as they are (Hugging Face's `text-generation`, TGI), or OpenAI's chats."""


def read_model_infos(path: str) -> dict[str, ModelInfo]:
    """By each name that is to be registered. Raises `InvalidOption`."""
    try:
        given = msgspec.json.decode(Path(path).read_bytes(), type=dict[str, ModelInfo])
    except OSError as error:
        raise InvalidOption(f"--model_info_file {path} cannot be read: {error.strerror}.") from error
    except msgspec.DecodeError as error:
        raise InvalidOption(f"--model_info_file {path}: {error}.") from error
    infos: dict[str, ModelInfo] = {}
    for key, info in given.items():
        if info.conv_template and info.conv_template not in CONVERSATIONS:
            raise InvalidOption(
                f"--model_info_file {path}: there is no conversation {info.conv_template!r}.",
                f"There are: {', '.join(CONVERSATIONS)}.",
            )
        if info.api_base and not info.api_base.startswith(("http://", "https://")):
            raise InvalidOption(f"--model_info_file {path}: {info.api_base!r} is no URL.")
        for name in info.model_names.split(",") if info.model_names else [key]:
            if infos.setdefault(name.strip(), info) is not info:
                raise InvalidOption(f"--model_info_file {path}: two models are called {name.strip()!r}.")
    if not infos:
        raise InvalidOption(f"--model_info_file {path} names no model.")
    return infos


class HuggingfaceApiWorker(BaseModelWorker):
    """To be made in the event loop. In FastChat's protocol; the controller turns OpenAI's into it."""

    def __init__(self, config: WorkerConfig, url: str, infos: dict[str, ModelInfo]) -> None:
        super().__init__(config, url, [*infos])
        self._infos = infos
        self._clients = {name: _client(info) for name, info in infos.items()}

    async def close(self) -> None:
        await super().close()
        for client in self._clients.values():
            await client.close()

    async def generate_stream_gate(self, params: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
        name = self._name(params)
        ask = _chat if self._infos[name].api == "chat" else _generate
        text, finish, usage = "", None, _usage(0, 0)
        try:
            async for more, end, counted in ask(self._clients[name], self._infos[name], params):
                text, finish, usage = text + more, end or finish, counted or usage
                yield _chunk(text, finish, usage)
        except _FAILURES as error:
            raise _failed(name, error) from error
        yield _chunk(text, finish or "stop", usage)

    def get_conv_template(self, params: dict[str, Any] | None = None) -> dict[str, Any]:
        info = self._infos[self._name(params or {})]
        return CONVERSATIONS[info.conv_template or self.config.conv_template or "raw"]

    async def model_details(self, params: dict[str, Any] | None = None) -> dict[str, Any]:
        return {"context_length": self._infos[self._name(params or {})].context_length}

    async def count_token(self, params: dict[str, Any]) -> dict[str, Any]:
        """These APIs count nothing: four bytes of text are one token, as the controller estimates too."""
        return {"count": -(-len(str(params.get("prompt", "")).encode()) // 4), "error_code": 0}

    def _name(self, params: dict[str, Any]) -> str:
        model = params.get("model") or self.model_names[0]
        if model not in self._infos:
            raise WorkerError(f"this worker has no model {str(model)[:100]!r}", 40301)
        return str(model)


_Part = tuple[str, str | None, dict[str, int] | None]
"""Text, why it ended, and the usage, as far as the part tells."""


async def _generate(
    client: AsyncInferenceClient, info: ModelInfo, params: dict[str, Any]
) -> AsyncIterator[_Part]:
    temperature, top_p, top_k = (
        params.get("temperature", 1.0),
        params.get("top_p", 1.0),
        params.get("top_k", -1),
    )
    stream = await client.text_generation(
        params.get("prompt", ""), stream=True, details=True, do_sample=temperature > 1e-5,
        temperature=temperature if temperature > 1e-5 else None, top_p=top_p if 0 < top_p < 1 else None,
        top_k=top_k if top_k > 0 else None, repetition_penalty=params.get("repetition_penalty"), stop=_stops(params) or None,
        max_new_tokens=_limit(params), return_full_text=False,
    )  # fmt: skip
    made = 0
    async for event in stream:
        made += 1
        details = event.details
        if details is None:
            yield ("" if event.token.special else event.token.text), None, None
            continue
        whole = getattr(details, "generated_tokens", None) or made
        prompt = int(getattr(details, "input_length", 0) or 0)
        reason = "length" if details.finish_reason == "length" else "stop"
        yield ("" if event.token.special else event.token.text), reason, _usage(prompt, int(whole))


async def _chat(
    client: AsyncInferenceClient, info: ModelInfo, params: dict[str, Any]
) -> AsyncIterator[_Part]:
    messages = params.get("messages") or [{"role": "user", "content": str(params.get("prompt", ""))}]
    stream = await client.chat_completion(
        messages, model=info.model_path, stream=True, temperature=params.get("temperature"), top_p=params.get("top_p"),
        max_tokens=_limit(params), stop=_stops(params) or None, presence_penalty=params.get("presence_penalty"),
        frequency_penalty=params.get("frequency_penalty"), stream_options=ChatCompletionInputStreamOptions(include_usage=True),
    )  # fmt: skip
    async for event in stream:
        usage = getattr(event, "usage", None)
        counted = _usage(usage.prompt_tokens, usage.completion_tokens) if usage else None
        for choice in event.choices or ():
            yield choice.delta.content or "", choice.finish_reason, None
        if counted is not None:
            yield "", None, counted


def _client(info: ModelInfo) -> AsyncInferenceClient:
    key = info.token or None
    if info.api_base and info.api == "chat":
        return AsyncInferenceClient(base_url=info.api_base, api_key=key)
    return AsyncInferenceClient(model=info.api_base or info.model_path, token=key)


def _stops(params: dict[str, Any]) -> list[str]:
    stop = params.get("stop")
    return [stop] if isinstance(stop, str) and stop else [*(stop or ())]


def _limit(params: dict[str, Any]) -> int | None:
    return params.get("max_new_tokens") or params.get("max_tokens") or None


def _usage(prompt: int, output: int) -> dict[str, int]:
    return {"prompt_tokens": prompt, "completion_tokens": output, "total_tokens": prompt + output}


def _chunk(text: str, finish: str | None, usage: dict[str, int]) -> dict[str, Any]:
    return {"text": text, "error_code": 0, "usage": usage, "finish_reason": finish, "logprobs": None}


def _failed(name: str, error: BaseException) -> WorkerError:
    status = getattr(getattr(error, "response", None), "status_code", None)
    code = {
        400: 40302,
        401: 50001,
        403: 50001,
        404: 40301,
        413: 40303,
        422: 40302,
        429: 42903,
        503: 42903,
    }.get(status or 0, 50005)
    reason = str(error) or type(error).__name__
    if isinstance(error, HfHubHTTPError):
        with contextlib.suppress(Exception):
            reason = json.loads(error.response.text)["error"]
            reason = reason.get("message", reason) if isinstance(reason, dict) else reason
    return WorkerError(f"the API of {name} failed: {str(reason)[:500]}", code)
