"""A request to Ollama's API as the chat, or the completion, that it means."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from lightllm.errors import InvalidParameter
from lightllm.httpserver.ollama.models import (
    OllamaChatRequest,
    OllamaGenerateRequest,
    OllamaMessage,
    OllamaOptions,
    OllamaRequest,
)
from lightllm.httpserver.openai.chat_messages import THINKING
from lightllm.httpserver.openai.models import (
    CalledFunction,
    ChatRequest,
    CompletionRequest,
    ContentPart,
    Message,
    ToolCall,
)
from lightllm.httpserver.reading import other_fields
from lightllm.httpserver.reading.constraints import ResponseFormat

_SAME = ("temperature", "top_k", "top_p", "min_p", "seed", "stop", "presence_penalty", "frequency_penalty")
"""Options that OpenAI's routes have under the same name."""


def chat_of(body: OllamaChatRequest, thinks: bool) -> ChatRequest:
    """thinks: whether the model has a form for its reasoning. Raises `InvalidParameter` for what is not supported."""
    fields = _common_fields(body) | _thinking_fields(body, thinks)
    messages = list(_messages(body.messages or ()))
    if messages[-1].role == "assistant" and not messages[-1].tool_calls:
        fields |= {"continue_final_message": True, "add_generation_prompt": False}
    return ChatRequest(messages=messages, tools=body.tools or None, **fields)


def chat_of_prompt(body: OllamaGenerateRequest, thinks: bool) -> ChatRequest:
    """The same for a prompt, which the model's template makes the turn of a user."""
    fields = _common_fields(body) | _thinking_fields(body, thinks)
    turn = OllamaMessage(role="user", content=body.prompt, images=body.images)
    system = [Message(role="system", content=body.system)] if body.system else []
    return ChatRequest(messages=[*system, *_messages([turn])], **fields)


def completion_of(body: OllamaGenerateRequest) -> CompletionRequest:
    """Of a prompt that is raw, or has a suffix. Raises `InvalidParameter` for what only a chat can have."""
    for name in ("system", "images", "think"):
        if getattr(body, name):
            reason = "raw" if body.raw else "suffix"
            raise InvalidParameter(f"{name} is not supported with {reason}", param=name)
    return CompletionRequest(prompt=body.prompt or "", suffix=body.suffix or None, **_common_fields(body))


def _common_fields(body: OllamaRequest) -> dict[str, Any]:
    refused, harmless = other_fields.OLLAMA_REFUSED, other_fields.OLLAMA_HARMLESS
    other_fields.check(body, body.model_extra, refused, harmless, "/api")
    options = body.options or OllamaOptions()
    other_fields.check(
        options, options.model_extra, other_fields.OLLAMA_OPTIONS_REFUSED,
        other_fields.OLLAMA_OPTIONS_HARMLESS, "options of /api",
    )  # fmt: skip
    fields: dict[str, Any] = {name: getattr(options, name) for name in _SAME}
    fields["repetition_penalty"] = options.repeat_penalty
    fields["priority"] = body.priority
    if options.num_predict is not None and options.num_predict >= 0:
        fields["max_tokens"] = options.num_predict
    if body.format == "json":
        fields["response_format"] = ResponseFormat(type="json_object")
    elif body.format:
        fields["json_schema"] = body.format
    return fields


def _thinking_fields(body: OllamaRequest, thinks: bool) -> dict[str, Any]:
    if body.think is None:
        return {}
    if body.think and not thinks:
        raise InvalidParameter(f"{body.model[:256]!r} does not support thinking", param="think")
    variables: dict[str, Any] = dict.fromkeys(THINKING, bool(body.think))
    if isinstance(body.think, str):
        variables["reasoning_effort"] = body.think
    return {"chat_template_kwargs": variables, "include_reasoning": bool(body.think)}


def _messages(messages: Sequence[OllamaMessage]) -> Iterable[Message]:
    """Calls have no ids in this API, and results name the function: both get ids, in their order, for the templates that want them."""
    waiting: list[tuple[str, str]] = []  # function and id of the calls without a result
    count = 0
    for message in messages:
        calls = []
        for call in message.tool_calls or ():
            count += 1
            call_id = call.id or f"call{count:05d}"  # nine letters and digits, as Mistral's templates want
            waiting.append((call.function.name, call_id))
            function = CalledFunction(name=call.function.name, arguments=call.function.arguments or {})
            calls.append(ToolCall(id=call_id, type="function", function=function))
        result_of = message.tool_call_id
        if message.role == "tool" and result_of is None and waiting:
            named = [one for one in waiting if one[0] == message.tool_name]
            found = (named or waiting)[0]
            waiting.remove(found)
            result_of = found[1]
        yield Message(
            role=message.role,
            content=_content(message),
            reasoning_content=message.thinking or None,
            tool_calls=calls or None,
            tool_call_id=result_of,
            name=message.tool_name,
        )


def _content(message: OllamaMessage) -> str | list[ContentPart | str]:
    text = message.content or ""
    if not message.images:
        return text
    images: list[ContentPart | str] = [
        ContentPart(
            type="image_url",
            image_url=image if image.startswith("data:") else f"data:image/png;base64,{image}",
        )
        for image in message.images
    ]
    return [*images, ContentPart(type="text", text=text)] if text else images
