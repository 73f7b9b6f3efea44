"""From the messages of a chat request to what a chat template takes."""

from __future__ import annotations

import json
from typing import Any

from lightllm.errors import InvalidParameter
from lightllm.httpserver.openai_models import ChatRequest, Message, ToolCall

RESERVED_VARIABLES = frozenset(
    {"messages", "tools", "documents", "add_generation_prompt", "tokenize", "chat_template", "conversation",
     "self", "return_dict", "return_tensors", "bos_token", "eos_token", "pad_token", "unk_token",
     "raise_exception", "strftime_now", "tojson"}
)  # fmt: skip
"""Names that a client cannot set through `chat_template_kwargs`."""
MAX_VARIABLES = 64


def template_messages(request: ChatRequest) -> list[dict[str, Any]]:
    """The messages as plain dictionaries. Raises `InvalidParameter` for content that is not text."""
    return [_message(message, index) for index, message in enumerate(request.messages)]


def template_tools(request: ChatRequest) -> list[dict[str, Any]] | None:
    """The tools as plain dictionaries; none if the client forbids their use."""
    if not request.tools or request.tool_choice == "none":
        return None
    if request.tool_choice not in (None, "auto"):
        raise InvalidParameter(
            "tool_choice other than 'auto' and 'none' is not supported yet", param="tool_choice"
        )
    return [tool.model_dump(exclude_none=True) for tool in request.tools]


def template_variables(request: ChatRequest) -> dict[str, Any]:
    """`chat_template_kwargs`, checked: scalars only, and nothing that is the server's to set. Null leaves the default."""
    variables = request.chat_template_kwargs or {}
    if len(variables) > MAX_VARIABLES:
        raise InvalidParameter(
            f"chat_template_kwargs has {len(variables)} entries, at most {MAX_VARIABLES}",
            param="chat_template_kwargs",
        )
    for name in variables:
        if name in RESERVED_VARIABLES or not name.isidentifier() or name.startswith("_"):
            raise InvalidParameter(
                f"chat_template_kwargs cannot set {name[:64]!r}", param="chat_template_kwargs"
            )
    return {name: value for name, value in variables.items() if value is not None}


def _message(message: Message, index: int) -> dict[str, Any]:
    result: dict[str, Any] = {"role": message.role, "content": _text(message, index)}
    for name in ("name", "tool_call_id", "reasoning_content"):
        value = getattr(message, name)
        if value is not None:
            result[name] = value
    if message.tool_calls:
        result["tool_calls"] = [_tool_call(call) for call in message.tool_calls]
    return result


def _text(message: Message, index: int) -> str:
    """The text of a message; parts are joined by line breaks, null is no text."""
    content = message.content
    if isinstance(content, str):
        return content
    if content is None:
        if "content" not in message.model_fields_set and not message.tool_calls:
            raise InvalidParameter(f"messages.{index} has no content", param="messages")
        return ""
    for part in content:
        if part.type != "text":
            raise InvalidParameter(
                f"messages.{index}: content of type {part.type[:40]!r} is not supported yet, only text",
                param="messages",
            )
        if part.text is None:
            raise InvalidParameter(f"messages.{index}: a text part has no text", param="messages")
    return "\n".join(part.text or "" for part in content)


def _tool_call(call: ToolCall) -> dict[str, Any]:
    """Templates expect the arguments as an object, the API carries them as a JSON string."""
    arguments: Any = call.function.arguments or "{}"
    try:
        parsed = json.loads(arguments)
    except (ValueError, RecursionError):
        parsed = arguments
    if isinstance(parsed, dict):
        arguments = parsed
    result = {"type": "function", "function": {"name": call.function.name, "arguments": arguments}}
    return result if call.id is None else {"id": call.id, **result}
