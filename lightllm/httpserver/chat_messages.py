"""From the messages of a chat request to what a chat template takes.

What a template takes of it is found out where it is rendered (`templating/conversation.py`): here every field of a message is
taken over or refused.
"""

from __future__ import annotations

import logging
import threading
from typing import Any

from lightllm.errors import InvalidParameter
from lightllm.httpserver.openai_models import ChatRequest, ContentPart, Message, Tool, ToolCall

RESERVED_VARIABLES = frozenset(
    {"messages", "tools", "documents", "add_generation_prompt", "continue_final_message", "must_read", "tokenize",
     "chat_template", "conversation", "self", "return_dict", "return_tensors", "bos_token", "eos_token", "pad_token", "unk_token",
     "raise_exception", "strftime_now", "tojson"}
)  # fmt: skip
"""Names that a client cannot set through `chat_template_kwargs`."""
MAX_VARIABLES = 64
_TEXT_PARTS = {
    "text": "text", "input_text": "text", "output_text": "text", "refusal": "refusal", "thinking": "thinking",
}  # fmt: skip
"""Type of a content part -> the field with its text."""
_TAKEN_OVER = ("name", "tool_call_id", "reasoning_content", "reasoning", "thinking")
_tools_noted = threading.Event()


def template_messages(request: ChatRequest) -> list[dict[str, Any]]:
    """The messages as plain dictionaries. Raises `InvalidParameter` for content that is not text."""
    if request.continue_final_message:
        last = request.messages[-1]
        if last.role != "assistant" or last.tool_calls or last.function_call:
            raise InvalidParameter(
                "continue_final_message needs an assistant message with text, and no calls, at the end of messages",
                param="continue_final_message",
            )
    return [_message(message, index) for index, message in enumerate(request.messages)]


def template_tools(request: ChatRequest) -> list[dict[str, Any]] | None:
    """The tools as plain dictionaries; none if the client forbids their use."""
    tools, choice, field = request.tools, request.tool_choice, "tool_choice"
    if request.functions:
        if tools:
            raise InvalidParameter("functions is the old name of tools: give one of them", param="functions")
        tools = [Tool(type="function", function=function) for function in request.functions]
    if request.function_call is not None:
        if choice is not None:
            raise InvalidParameter(
                "function_call is the old name of tool_choice: give one of them", param="function_call"
            )
        choice, field = request.function_call, "function_call"
    if not tools or choice == "none":
        return None
    if choice not in (None, "auto"):
        raise InvalidParameter(f"{field} other than 'auto' and 'none' is not supported yet", param=field)
    return [tool.model_dump(exclude_none=True) for tool in tools]


def note_tools() -> None:
    """Into the log, once: nobody reads calls out of what the model writes."""
    if not _tools_noted.is_set():
        _tools_noted.set()
        logging.getLogger(__name__).warning(
            "a request has tools: the model is told of them, but the calls that it writes come back as text, unparsed"
        )


def template_variables(request: ChatRequest) -> dict[str, Any]:
    """`chat_template_kwargs` and `reasoning_effort`, checked: scalars only, and nothing that is the server's to set. Null leaves
    the default."""
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
    result: dict[str, Any] = {name: value for name, value in variables.items() if value is not None}
    effort = request.reasoning_effort
    if effort is not None and result.setdefault("reasoning_effort", effort) != effort:
        raise InvalidParameter(
            f"reasoning_effort is {effort[:64]!r}, but {str(result['reasoning_effort'])[:64]!r} in chat_template_kwargs",
            param="reasoning_effort",
        )
    return result


def _message(message: Message, index: int) -> dict[str, Any]:
    result: dict[str, Any] = {"role": message.role, "content": _text(message, index)}
    for name in _TAKEN_OVER:
        value = getattr(message, name)
        if value is not None:
            result[name] = value
    if message.tool_calls:
        result["tool_calls"] = [_tool_call(call) for call in message.tool_calls]
    if message.function_call is not None:
        result["function_call"] = message.function_call.model_dump(exclude_none=True)
    if message.audio is not None:
        raise InvalidParameter(f"messages.{index}: audio is not supported", param="messages")
    if message.prefix or message.partial:
        raise InvalidParameter(
            f"messages.{index}: an open message is asked for by continue_final_message of the request",
            param="messages",
        )
    return result


def _text(message: Message, index: int) -> str:
    """The text of a message; parts are joined by line breaks, null is no text. A refusal is what the model said."""
    content = message.content
    if content is None and message.refusal is not None:
        content = message.refusal
    if content is None:
        if "content" not in message.model_fields_set and not message.tool_calls and not message.function_call:
            raise InvalidParameter(f"messages.{index} has no content", param="messages")
        return ""
    if isinstance(content, str):
        return content
    return "\n".join(part if isinstance(part, str) else _part_text(part, index) for part in content)


def _part_text(part: ContentPart, index: int) -> str:
    field = _TEXT_PARTS.get(part.type)
    if field is None:
        raise InvalidParameter(
            f"messages.{index}: content of type {part.type[:40]!r} is not supported yet, only text",
            param="messages",
        )
    text: str | None = getattr(part, field)
    if text is None:
        raise InvalidParameter(f"messages.{index}: a {part.type} part has no {field}", param="messages")
    return text


def _tool_call(call: ToolCall) -> dict[str, Any]:
    result = {"type": "function", "function": call.function.model_dump(exclude_none=True)}
    return result if call.id is None else {"id": call.id, **result}
