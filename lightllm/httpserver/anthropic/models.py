"""Bodies of Anthropic's `/v1/messages` and `/v1/messages/count_tokens`; null means the default.

The sampling parameters that OpenAI's routes take are taken here too, under the same names.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field
from pydantic.json_schema import SkipJsonSchema

from lightllm.httpserver.reading.field_types import MAX_STRINGS, Body, Bool, Int, Scalar, StopTexts, Text
from lightllm.httpserver.reading.sampling_fields import sampling_fields

_MAX_BLOCKS = Field(fail_fast=True, max_length=MAX_STRINGS)


class InnerBlock(Body):
    """A part of a system prompt, of a tool's result or of a message. What it holds stands in the fields of its type."""

    type: Text
    text: Text | None = None
    thinking: Text | None = None
    id: Text | None = None
    name: Text | None = None
    input: dict[str, Any] | None = None
    tool_use_id: Text | None = None
    is_error: Bool | None = None
    title: Text | None = None
    source: SkipJsonSchema[Any] = None
    """Of an image or a document: an object with a type."""


class Block(InnerBlock):
    """A part of a message; a tool's result has parts of its own."""

    content: Text | Annotated[list[InnerBlock], _MAX_BLOCKS] | None = None


class Turn(Body):
    role: Literal["user", "assistant", "system"]
    content: Text | Annotated[list[Block], _MAX_BLOCKS]


class MessagesTool(Body):
    type: Text | None = None
    name: Text
    description: Text | None = None
    input_schema: dict[str, Any] | None = None
    strict: Bool | None = None
    """Calls fit the schema also where the model need not call."""


class MessagesToolChoice(Body):
    type: Literal["auto", "any", "tool", "none"]
    name: Text | None = None
    disable_parallel_tool_use: Bool | None = None


class Thinking(Body):
    type: Literal["enabled", "disabled", "adaptive"]
    budget_tokens: Int | None = None
    """Has no effect: how long a model thinks is its own affair, within max_tokens."""
    display: Literal["summarized", "omitted"] | None = None


class OutputFormat(Body):
    type: Literal["json_schema"]
    schema_: dict[str, Any] = Field(alias="schema")


class OutputConfig(Body):
    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = None
    format: OutputFormat | None = None


_Sampling: Any = sampling_fields(
    "openai", first=("max_tokens", "temperature", "top_p", "top_k"), placed={"": ("model",)}
)


class CountTokensRequest(_Sampling):
    """Body of `/v1/messages/count_tokens`: of that of `/v1/messages` what makes the prompt; the rest is taken too."""

    model_config = ConfigDict(extra="allow")

    model: Text | None = None
    messages: Annotated[list[Turn], Field(fail_fast=True, min_length=1, max_length=MAX_STRINGS)]
    system: Text | Annotated[list[InnerBlock], _MAX_BLOCKS] | None = None
    tools: Annotated[list[MessagesTool], Field(fail_fast=True, max_length=1024)] | None = None
    tool_choice: MessagesToolChoice | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None
    output_format: OutputFormat | None = None
    """The same as `output_config.format`, by its older name."""
    chat_template_kwargs: dict[str, Scalar | None] | None = None


class MessagesRequest(CountTokensRequest):
    """Body of `/v1/messages`."""

    max_tokens: Int
    stream: Bool | None = None
    stop_sequences: StopTexts | None = None
    return_timings: Bool | None = None
    """How long the request took."""
    timings_per_token: Bool | None = None
    """The same, as llama.cpp calls it."""
