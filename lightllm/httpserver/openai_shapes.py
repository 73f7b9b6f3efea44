"""What a choice looks like in `/v1/chat/completions` and in `/v1/completions`, whole and as a chunk of a stream."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from lightllm.httpserver.logprobs import Logprobs
from lightllm.httpserver.record import ChoiceRecord
from lightllm.parsers.deltas import Delta


class Shape(Protocol):
    """The differences between the two APIs; all functions are pure."""

    whole_object: str
    chunk_object: str
    prompt_ids_beside: bool
    """`prompt_token_ids` stand beside the choices, else in each choice."""
    content_frame: tuple[bytes, bytes]
    """Around the text of a chunk with nothing but content: from behind the index to the end of `choices`."""

    def opening(self, index: int) -> dict[str, Any] | None:
        """The chunk before the first text, if there is one."""

    def chunk(self, index: int, delta: Delta) -> dict[str, Any]:
        """A chunk with one delta; its `logprobs` are null."""

    def closing(self, index: int, reason: str | None) -> dict[str, Any]:
        """The chunk behind the last text."""

    def whole(self, index: int, deltas: Sequence[Delta], logprobs: Any, reason: str | None) -> dict[str, Any]:
        """The choice of a whole answer."""

    def logprobs(self, logprobs: Logprobs, choice: ChoiceRecord, echoed: int) -> Any:
        """Of the tokens that have not been sent; echoed: characters of the prompt before the first one."""


class ChatShape:
    """`chat.completion` and `chat.completion.chunk`."""

    whole_object = "chat.completion"
    chunk_object = "chat.completion.chunk"
    prompt_ids_beside = True
    content_frame = b'"delta":{"content":', b'},"logprobs":null,"finish_reason":null}]'

    def opening(self, index: int) -> dict[str, Any]:
        return _chat_chunk(index, {"role": "assistant", "content": ""})

    def chunk(self, index: int, delta: Delta) -> dict[str, Any]:
        return _chat_chunk(index, _chat_delta(delta))

    def closing(self, index: int, reason: str | None) -> dict[str, Any]:
        return _chat_chunk(index, {}, reason)

    def whole(self, index: int, deltas: Sequence[Delta], logprobs: Any, reason: str | None) -> dict[str, Any]:
        message: dict[str, Any] = {
            "role": "assistant",
            "content": _joined(deltas, "content"),
            "refusal": None,
        }
        reasoning = _joined(deltas, "reasoning")
        if reasoning:
            message["reasoning_content"] = reasoning
        calls = _tool_calls(deltas)
        if calls:
            message["content"] = message["content"] or None
            message["tool_calls"] = calls
        return {"index": index, "message": message, "logprobs": logprobs, "finish_reason": reason}

    def logprobs(self, logprobs: Logprobs, choice: ChoiceRecord, echoed: int) -> Any:
        return logprobs.chat(choice, choice.sent)


class CompletionShape:
    """`text_completion`."""

    whole_object = chunk_object = "text_completion"
    prompt_ids_beside = False
    content_frame = b'"text":', b',"logprobs":null,"finish_reason":null}]'

    def opening(self, index: int) -> None:
        return None

    def chunk(self, index: int, delta: Delta) -> dict[str, Any]:
        return _completion(index, delta.text)

    def closing(self, index: int, reason: str | None) -> dict[str, Any]:
        return _completion(index, "", reason=reason)

    def whole(self, index: int, deltas: Sequence[Delta], logprobs: Any, reason: str | None) -> dict[str, Any]:
        return _completion(index, _joined(deltas, "content"), logprobs, reason)

    def logprobs(self, logprobs: Logprobs, choice: ChoiceRecord, echoed: int) -> Any:
        return logprobs.completion(choice, echoed)


def _chat_chunk(index: int, delta: dict[str, Any], reason: str | None = None) -> dict[str, Any]:
    return {"index": index, "delta": delta, "logprobs": None, "finish_reason": reason}


def _chat_delta(delta: Delta) -> dict[str, Any]:
    if delta.kind == "content":
        return {"content": delta.text}
    if delta.kind == "reasoning":
        return {"reasoning_content": delta.text}
    if not delta.name:
        return {"tool_calls": [{"index": delta.index, "function": {"arguments": delta.text}}]}
    return {"tool_calls": [{"index": delta.index, **_call(delta.call_id, delta.name, delta.text)}]}


def _tool_calls(deltas: Sequence[Delta]) -> list[dict[str, Any]]:
    calls: dict[int, dict[str, Any]] = {}
    for delta in deltas:
        if delta.kind != "tool_call":
            continue
        if delta.name:
            calls[delta.index] = _call(delta.call_id, delta.name, delta.text)
        else:
            calls[delta.index]["function"]["arguments"] += delta.text
    return list(calls.values())


def _call(call_id: str, name: str, arguments: str) -> dict[str, Any]:
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}


def _completion(index: int, text: str, logprobs: Any = None, reason: str | None = None) -> dict[str, Any]:
    return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": reason}


def _joined(deltas: Sequence[Delta], kind: str) -> str:
    return "".join(delta.text for delta in deltas if delta.kind == kind)
