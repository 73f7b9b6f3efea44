"""Bodies of Ollama's `/api/chat`, `/api/generate` and `/api/show`; null means the default."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field

from lightllm.httpserver.openai.models import Tool
from lightllm.httpserver.reading.field_types import MAX_STRINGS, Body, Bool, Float, Int, StopTexts, Text

_Images = Annotated[list[Text], Field(fail_fast=True, max_length=MAX_STRINGS)]
"""Base64."""


class OllamaOptions(Body):
    """Sampling; `other_fields` judges what is not here."""

    model_config = ConfigDict(extra="allow")

    num_predict: Int | None = None
    """Tokens to generate at most; below 0: what fits."""
    temperature: Float | None = None
    top_k: Int | None = None
    top_p: Float | None = None
    min_p: Float | None = None
    seed: Int | None = None
    stop: Text | StopTexts | None = None
    repeat_penalty: Float | None = None
    presence_penalty: Float | None = None
    frequency_penalty: Float | None = None


class OllamaRequest(Body):
    """What chats and prompts have in common."""

    model_config = ConfigDict(extra="allow")

    model: Text
    stream: Bool | None = None
    """True by default."""
    format: Literal["", "json"] | dict[str, Any] | None = None
    options: OllamaOptions | None = None
    think: Annotated[bool, Field(strict=True)] | Literal["low", "medium", "high"] | None = None
    keep_alive: Any = None
    priority: Int | None = None
    """Ours: as in the other APIs."""

    @property
    def streamed(self) -> bool:
        return self.stream is not False


class OllamaFunction(Body):
    name: Text
    arguments: dict[str, Any] | None = None


class OllamaToolCall(Body):
    id: Text | None = None
    function: OllamaFunction


class OllamaMessage(Body):
    role: Annotated[str, Field(strict=True, min_length=1, max_length=64)]
    content: Text | None = None
    thinking: Text | None = None
    images: _Images | None = None
    tool_calls: Annotated[list[OllamaToolCall], Field(fail_fast=True, max_length=1024)] | None = None
    tool_name: Text | None = None
    tool_call_id: Text | None = None


class OllamaChatRequest(OllamaRequest):
    """Body of `/api/chat`."""

    messages: Annotated[list[OllamaMessage], Field(fail_fast=True, max_length=MAX_STRINGS)] | None = None
    tools: Annotated[list[Tool], Field(fail_fast=True, max_length=1024)] | None = None


class OllamaGenerateRequest(OllamaRequest):
    """Body of `/api/generate`."""

    prompt: Text | None = None
    suffix: Text | None = None
    system: Text | None = None
    images: _Images | None = None
    raw: Bool | None = None
    """The prompt is what the model sees, without its template."""


class OllamaShowRequest(Body):
    """Body of `/api/show`."""

    model: Text | None = None
    name: Text | None = None
    """The older name of `model`."""
