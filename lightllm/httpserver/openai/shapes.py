"""What a choice looks like in `/v1/chat/completions` and in `/v1/completions`, whole and as a chunk of a stream."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from lightllm.httpserver.logprobs import Logprobs
from lightllm.httpserver.record import ChoiceRecord
from lightllm.parsers.deltas import Delta


@dataclasses.dataclass(frozen=True)
class Shape:
    """The differences between the two APIs; all functions are pure."""

    whole_object: str
    chunk_object: str
    prompt_ids_beside: bool
    """`prompt_token_ids` stand beside the choices, else in each choice."""
    content_frame: tuple[bytes, bytes]
    """Around the text of a chunk with nothing but content: from behind the index to before `logprobs`."""
    opening: dict[str, Any] | None
    """What the chunk before the first text holds, if there is one."""
    closing: dict[str, Any]
    """What the chunk behind the last text holds."""
    part: Callable[[Delta], dict[str, Any]]
    """What a chunk with one delta holds."""
    whole: Callable[[Sequence[Delta]], dict[str, Any]]
    """What the choice of a whole answer holds."""
    logprobs: Callable[[Logprobs, ChoiceRecord, int], Any]
    """Of the tokens that have not been sent, behind so many characters of an echoed prompt."""
    called: str = "tool_calls"
    """Finish reason of an answer with calls."""


def choice_of(
    index: int, part: dict[str, Any], logprobs: Any = None, reason: str | None = None
) -> dict[str, Any]:
    """The choice of a chunk or of a whole answer that holds `part`."""
    return {"index": index, **part, "logprobs": logprobs, "finish_reason": reason}


def _chat_part(delta: Delta) -> dict[str, Any]:
    if delta.kind == "content":
        return {"delta": {"content": delta.text}}
    if delta.kind == "reasoning":
        return {"delta": {"reasoning_content": delta.text, "reasoning": delta.text}}
    call = _call(delta) if delta.name else {"function": {"arguments": delta.text}}
    return {"delta": {"tool_calls": [{"index": delta.index, **call}]}}


def _chat_message(deltas: Sequence[Delta]) -> dict[str, Any]:
    content, reasoning, calls = _joined(deltas, "content"), _joined(deltas, "reasoning"), _tool_calls(deltas)
    message: dict[str, Any] = {"role": "assistant", "content": content, "refusal": None}
    if reasoning:
        message |= {"reasoning_content": reasoning, "reasoning": reasoning}
    if calls:
        message |= {"content": content or None, "tool_calls": calls}
    return {"message": message}


def _tool_calls(deltas: Sequence[Delta]) -> list[dict[str, Any]]:
    calls: dict[int, dict[str, Any]] = {}
    for delta in deltas:
        if delta.kind == "tool_call" and delta.name:
            calls[delta.index] = _call(delta)
        elif delta.kind == "tool_call":
            calls[delta.index]["function"]["arguments"] += delta.text
    return list(calls.values())


def _call(delta: Delta) -> dict[str, Any]:
    function = {"name": delta.name, "arguments": delta.text}
    return {"id": delta.call_id, "type": "function", "function": function}


def _old_part(delta: Delta) -> dict[str, Any]:
    """The one call, without an id."""
    if delta.kind != "tool_call":
        return _chat_part(delta)
    call = {"name": delta.name, "arguments": delta.text} if delta.name else {"arguments": delta.text}
    return {"delta": {"function_call": call}}


def _old_message(deltas: Sequence[Delta]) -> dict[str, Any]:
    message = _chat_message(deltas)["message"]
    for call in message.pop("tool_calls", [])[:1]:
        message["function_call"] = call["function"]
    return {"message": message}


def _joined(deltas: Sequence[Delta], kind: str) -> str:
    return "".join(delta.text for delta in deltas if delta.kind == kind)


CHAT = Shape(
    whole_object="chat.completion",
    chunk_object="chat.completion.chunk",
    prompt_ids_beside=True,
    content_frame=(b'"delta":{"content":', b"}"),
    opening={"delta": {"role": "assistant", "content": ""}},
    closing={"delta": {}},
    part=_chat_part,
    whole=_chat_message,
    logprobs=lambda logprobs, choice, echoed: logprobs.chat(choice, choice.sent),
)
OLD_CHAT = dataclasses.replace(CHAT, part=_old_part, whole=_old_message, called="function_call")
"""For clients that know OpenAI's deprecated `functions` only."""
COMPLETION = Shape(
    whole_object="text_completion",
    chunk_object="text_completion",
    prompt_ids_beside=False,
    content_frame=(b'"text":', b""),
    opening=None,
    closing={"text": ""},
    part=lambda delta: {"text": delta.text},
    whole=lambda deltas: {"text": _joined(deltas, "content")},
    logprobs=Logprobs.completion,
)
