"""Body of `/v1/responses`, OpenAI's second way to ask for an answer; null means the default.

Fields that are not here (sampling parameters, extensions of vLLM and SGLang) go on to the chat request that is made of it, under
the same names.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import ConfigDict, Field
from pydantic.json_schema import SkipJsonSchema

from lightllm.httpserver.reading.constraints import JsonSchema
from lightllm.httpserver.reading.field_types import MAX_STRINGS, Body, Bool, Float, Int, Text
from lightllm.httpserver.reading.other_fields import Refused

_NO = Refused()


class InputPart(Body):
    """A part of an item's content, output or summary."""

    type: Text
    text: Text | None = None
    refusal: Text | None = None
    image_url: SkipJsonSchema[Any] = None
    detail: SkipJsonSchema[Any] = None


_Parts = Annotated[list[InputPart], Field(fail_fast=True, max_length=MAX_STRINGS)]


class InputItem(Body):
    """One item of an input: which of the fields it has depends on its type; one without a type is a message."""

    type: Text | None = None
    id: Annotated[str, Field(strict=True, max_length=256)] | None = None
    role: Annotated[str, Field(strict=True, min_length=1, max_length=64)] | None = None
    content: Text | _Parts | None = None
    status: Text | None = None
    call_id: Text | None = None
    name: Text | None = None
    arguments: Text | None = None
    output: Text | _Parts | None = None
    summary: _Parts | None = None
    encrypted_content: Text | None = None


class TextFormat(Body):
    type: Text
    name: Text | None = None
    schema_: JsonSchema | None = Field(default=None, alias="schema")
    strict: Bool | None = None
    description: Text | None = None


class TextOptions(Body):
    format: TextFormat | None = None
    verbosity: Text | None = None


class Reasoning(Body):
    effort: Text | None = None
    summary: Text | None = None
    """The reasoning comes as it was written, which a summary would only shorten."""
    generate_summary: Text | None = None


class ResponseTool(Body):
    type: Text
    name: Text | None = None
    description: Text | None = None
    parameters: dict[str, Any] | None = None
    strict: Bool | None = None


_Label = Annotated[str, Field(strict=True, max_length=512)]


class ResponsesRequest(Body):
    """Body of `/v1/responses`."""

    model_config = ConfigDict(extra="allow")

    model: Text | None = None
    input: Text | Annotated[list[InputItem], Field(fail_fast=True, max_length=MAX_STRINGS)]
    instructions: Text | None = None
    stream: Bool | None = None
    max_output_tokens: Int | None = None
    temperature: Float | None = None
    top_p: Float | None = None
    text: TextOptions | None = None
    tools: Annotated[list[ResponseTool], Field(fail_fast=True, max_length=1024)] | None = None
    tool_choice: Any = None
    parallel_tool_calls: Bool | None = None
    reasoning: Reasoning | None = None
    top_logprobs: Int | None = None
    include: Annotated[list[Text], Field(fail_fast=True, max_length=64)] | None = None
    metadata: Annotated[dict[Annotated[str, Field(max_length=64)], _Label], Field(max_length=16)] | None = (
        None
    )
    store: Bool | None = None
    background: Bool | None = None
    previous_response_id: Text | None = None
    truncation: Text | None = None
    user: _Label | None = None
    safety_identifier: _Label | None = None
    prompt_cache_key: _Label | None = None
    service_tier: _Label | None = None
    max_tool_calls: Int | None = None
    """Of tools that a server runs itself; there are none here."""


RESPONSES_REFUSED = {
    # OpenAI
    "conversation": Refused("previous_response_id"), "prompt": Refused("instructions and input"), "context_management": _NO,
    "modalities": Refused(neutral=(["text"],)),
    # of the chat API
    "messages": Refused("input"), "n": Refused(neutral=(1,)), "max_tokens": Refused("max_output_tokens"),
    "max_completion_tokens": Refused("max_output_tokens"), "response_format": Refused("text.format"),
    "reasoning_effort": Refused("reasoning.effort"), "functions": Refused("tools"), "function_call": Refused("tool_choice"),
    "verbosity": Refused(neutral=("medium",)), "logprobs": Refused("include"),
    "prompt_logprobs": Refused("prompt_logprobs of /v1/chat/completions"),
    "return_token_ids": Refused("return_token_ids of /v1/chat/completions"),
    "return_tokens_as_token_ids": Refused("return_tokens_as_token_ids of /v1/chat/completions"),
    "continue_final_message": _NO, "truncate_prompt_tokens": _NO, "previous_input_messages": Refused("input"),
}  # fmt: skip
"""Names on `/v1/responses` that would change the answer; others mean what they mean for chats."""
RESPONSES_HARMLESS = frozenset(
    {"stream_options", "user", "metadata", "safety_identifier", "prompt_cache_key", "prompt_cache_retention", "service_tier",
     "max_tool_calls"}
)  # fmt: skip
