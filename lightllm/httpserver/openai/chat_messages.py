"""From the messages of a chat request to what a chat template takes.

What a template takes of it is found out where it is rendered (`templating/conversation.py`): here every field of a message is
taken over or refused. What is no text is set aside; its place in the message is kept by a part that has nothing but a type.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any, NamedTuple

from lightllm.errors import InvalidParameter
from lightllm.httpserver.openai.models import ChatRequest, ContentPart, Message, ToolCall

RESERVED_VARIABLES = frozenset(
    {"messages", "tools", "documents", "add_generation_prompt", "continue_final_message", "must_read", "image_marker", "tokenize",
     "chat_template", "conversation", "self", "return_dict", "return_tensors", "bos_token", "eos_token", "pad_token", "unk_token",
     "raise_exception", "strftime_now", "tojson"}
)  # fmt: skip
"""Names that a client cannot set through `chat_template_kwargs`."""
MAX_VARIABLES = 64
THINKING = ("enable_thinking", "thinking")
"""What templates call the switch of reasoning: Qwen's and GLM's, and DeepSeek's."""
_TEXT_PARTS = {
    "text": "text", "input_text": "text", "output_text": "text", "refusal": "refusal", "thinking": "thinking",
}  # fmt: skip
"""Type of a content part -> the field with its text."""
MEDIA_PARTS = {
    "image": ("image", "image"), "image_url": ("image", "image_url"), "input_image": ("image", "image_url"),
    "video": ("video", "video"), "video_url": ("video", "video_url"),
    "audio_url": ("audio", "audio_url"), "input_audio": ("audio", "input_audio"),
}  # fmt: skip
"""Type of a content part -> what templates call it, the field with its source."""
_TAKEN_OVER = ("name", "tool_call_id", "reasoning_content", "reasoning", "thinking")


class Medium(NamedTuple):
    """What a message holds besides text."""

    kind: str
    """image, video or audio"""
    source: Any
    """As the client sent it: a URL, data, or an object with either."""
    message: int
    """Index of the message."""
    part: int
    """Index in the message's content."""


class Conversation(NamedTuple):
    messages: list[dict[str, Any]]
    """Plain dictionaries. A content is a text; with media it is a list of text parts and `{"type": KIND}` in the places of media."""
    media: list[Medium]
    """In the order of their places."""


def read_conversation(request: ChatRequest, kinds: frozenset[str] = frozenset()) -> Conversation:
    """kinds: of media, those that the model takes. Raises `InvalidParameter` for content of another kind."""
    if request.continue_final_message:
        last = request.messages[-1]
        if last.role != "assistant" or last.tool_calls or last.function_call:
            raise InvalidParameter(
                "continue_final_message needs an assistant message with text, and no calls, at the end of messages",
                param="continue_final_message",
            )
    reader = _Reader(kinds)
    messages = [reader.message(message, index) for index, message in enumerate(request.messages)]
    return Conversation(messages, reader.media)


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
    return result | _thinking(request, result)


def _thinking(request: ChatRequest, variables: Mapping[str, Any]) -> dict[str, bool]:
    """Whether the model shall think before it answers, under both names that templates have for it; nothing if nobody says."""
    asked = request.enable_thinking
    if asked is None and request.thinking is not None:
        asked = _is_on(request.thinking)
    if asked is None and request.reasoning_effort == "none":
        asked = False
    given = [variables[name] for name in THINKING if name in variables]
    if asked is not None and any(value != asked for value in given):
        raise InvalidParameter(
            "thinking is asked for, and chat_template_kwargs say otherwise", param="chat_template_kwargs"
        )
    asked = given[0] if given else asked
    return {} if asked is None else {name: variables.get(name, asked) for name in THINKING}


def _is_on(thinking: Any) -> bool:
    """`{"type": "enabled"}` of DeepSeek's, GLM's and Anthropic's APIs, or a boolean."""
    if isinstance(thinking, Mapping) and thinking.get("type") in ("enabled", "disabled", "adaptive", "auto"):
        return bool(thinking["type"] != "disabled")
    if isinstance(thinking, bool):
        return thinking
    raise InvalidParameter(
        'thinking must be {"type": "enabled"} or {"type": "disabled"}, or a boolean', param="thinking"
    )


def must_read(request: ChatRequest) -> list[str]:
    """Variables that the template must read, or the request would not have its effect; of names with a | between them one."""
    if request.enable_thinking is not None or request.thinking is not None:
        return ["|".join(THINKING)]
    if request.reasoning_effort is None:
        return []
    return [
        "|".join(("reasoning_effort", *THINKING))
        if request.reasoning_effort == "none"
        else "reasoning_effort"
    ]


class _Reader:
    """Of one conversation."""

    def __init__(self, kinds: frozenset[str]) -> None:
        self.media: list[Medium] = []
        self._kinds = kinds

    def message(self, message: Message, index: int) -> dict[str, Any]:
        result: dict[str, Any] = {"role": message.role, "content": self._content(message, index)}
        result |= {name: value for name in _TAKEN_OVER if (value := getattr(message, name)) is not None}
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

    def _content(self, message: Message, index: int) -> str | list[dict[str, str]]:
        """Null is no text; a refusal is what the model said. Texts with nothing between them are joined by line breaks."""
        content = message.content
        if content is None and message.refusal is not None:
            content = message.refusal
        if content is None:
            calls = message.tool_calls or message.function_call
            if "content" not in message.model_fields_set and not calls:
                raise InvalidParameter(f"messages.{index} has no content", param="messages")
            return ""
        if isinstance(content, str):
            return content
        parts: list[Any] = [
            part if isinstance(part, str) else self._part(part, index, place)
            for place, part in enumerate(content)
        ]
        joined: list[Any] = []
        for texts, group in itertools.groupby(parts, lambda part: isinstance(part, str)):
            run = list(group)
            if texts and len(run) == len(parts):
                return "\n".join(run)
            joined += [{"type": "text", "text": "\n".join(run)}] if texts else run
        return joined or ""

    def _part(self, part: ContentPart, index: int, place: int) -> str | dict[str, str]:
        """A text, or what keeps the place of a medium."""
        kind, field = MEDIA_PARTS.get(part.type, ("text", _TEXT_PARTS.get(part.type, "")))
        if not field or kind != "text" and kind not in self._kinds:
            raise InvalidParameter(
                f"messages.{index}: content of type {part.type[:40]!r} is not supported yet, only text",
                param="messages",
            )
        value: Any = getattr(part, field)
        if value is None:
            raise InvalidParameter(f"messages.{index}: a {part.type} part has no {field}", param="messages")
        if kind == "text":
            return str(value)
        self.media.append(Medium(kind, value, index, place))
        return {"type": kind}


def _tool_call(call: ToolCall) -> dict[str, Any]:
    result = {"type": "function", "function": call.function.model_dump(exclude_none=True)}
    return result if call.id is None else {"id": call.id, **result}
