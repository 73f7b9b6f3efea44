"""Answers of Anthropic's `/v1/messages`, whole and streamed.

    message_start        as soon as the request is accepted (`opening`)
    content_block_start  of a block: text, thinking or tool_use; one is open at a time
    content_block_delta  a further piece of it
    content_block_stop
    message_delta        the reason for the end, and the usage
    message_stop

A block is a run of deltas of one kind, and of one call: a whole answer and a stream have the same.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from typing import Any

from lightllm.errors import RequestError
from lightllm.http.error_responses import anthropic_body
from lightllm.httpserver.record import ChoiceRecord, RequestRecord
from lightllm.httpserver.rendering import arguments_object, event_json, json_bytes, named_event, new_deltas
from lightllm.httpserver.timings import timings
from lightllm.parsers.deltas import Delta, DeltaParser, tokens_within

PING = b'event: ping\ndata: {"type": "ping"}\n\n'
_REASONS = {"stop": "end_turn", "length": "max_tokens", "abort": "pause_turn", "timeout": "pause_turn"}
"""An answer that was ended from outside can be continued: what Anthropic calls a pause."""
_PIECES = {
    "content": ("text_delta", "text"), "reasoning": ("thinking_delta", "thinking"),
    "tool_call": ("input_json_delta", "partial_json"),
}  # fmt: skip
"""Kind of a delta -> the type of an event's delta, and the field with its text."""


class MessagesRenderer:
    """The renderer of one request (`responses.Renderer`), which has one answer."""

    def __init__(
        self,
        answer_id: str,
        model: str,
        make_parser: Callable[[], DeltaParser],
        clipped: bool = False,
        timed: bool = False,
    ) -> None:
        """clipped: it is the context that limits the answer, and not `max_tokens`; timed: tell how long it took."""
        self._id = answer_id
        self._clipped = clipped
        self._timed = timed
        self._model = model
        self._parser = make_parser()
        self._open: tuple[str, int] | None = None
        """The block that a stream is in: kind and call."""
        self._index = -1
        """Of that block."""
        self._called = False
        """There was a tool call."""
        self._failed = False
        """An error has ended the stream."""

    def opening(self, prompt_tokens: int) -> bytes:
        """The first event. How much of the prompt the cache holds is known when the answer begins: the last usage tells it."""
        message = self._message([], None, _usage(prompt_tokens, 0, 0))
        return named_event("message_start", {"message": message})

    # -- whole

    def answer(self, record: RequestRecord) -> bytes:
        (choice,) = record.choices
        deltas = [*self._parser.push(choice.text), *self._parser.end()]
        runs = itertools.groupby(filter(_tells, deltas), _block_of)
        content = [self._whole_block(kind, list(run)) for (kind, _), run in runs]
        message = self._message(content, choice, self._final_usage(record, choice))
        return json_bytes(message | self._timings(record))

    def _whole_block(self, kind: str, run: list[Delta]) -> dict[str, Any]:
        self._called = self._called or kind == "tool_call"
        text = "".join(delta.text for delta in run)
        block = self._empty_block(run[0])
        if kind == "tool_call":
            return block | {"input": arguments_object(text)}
        if kind == "reasoning":
            return block | {"thinking": text, "signature": self._id}
        return block | {"text": text}

    def _message(
        self, content: list[dict[str, Any]], choice: ChoiceRecord | None, usage: dict[str, Any]
    ) -> dict[str, Any]:
        return {
            "id": self._id,
            "type": "message",
            "role": "assistant",
            "model": self._model,
            "content": content,
            **self._end_of(choice),
            "usage": usage,
        }

    # -- streamed

    def preparation(self, record: RequestRecord) -> Callable[[], None] | None:
        return None

    def events(self, record: RequestRecord) -> list[bytes]:
        (choice,) = record.choices
        events: list[bytes] = []
        for delta in filter(_tells, new_deltas(choice, self._parser)):
            events += self._piece(delta)
        return events

    def error(self, error: RequestError) -> bytes:
        self._failed = True
        return b"event: error\ndata: %b\n\n" % event_json(anthropic_body(error, error.status))

    def end(self, record: RequestRecord) -> list[bytes]:
        if self._failed:
            return []
        (choice,) = record.choices
        last = {"delta": self._end_of(choice), "usage": self._final_usage(record, choice)}
        return [
            *self._close(),
            named_event("message_delta", last | self._timings(record)),
            named_event("message_stop", {}),
        ]

    def _piece(self, delta: Delta) -> Iterable[bytes]:
        """The events for a delta; it may begin a block."""
        if _block_of(delta) != self._open:
            yield from self._close()
            self._open, self._index = _block_of(delta), self._index + 1
            self._called = self._called or delta.kind == "tool_call"
            block = self._empty_block(delta)
            yield named_event("content_block_start", {"index": self._index, "content_block": block})
        if delta.text:
            kind, field = _PIECES[delta.kind]
            yield self._block_delta({"type": kind, field: delta.text})

    def _close(self) -> Iterable[bytes]:
        """The end of the block that is open, if one is."""
        if self._open is None:
            return
        if self._open[0] == "reasoning":
            yield self._block_delta({"type": "signature_delta", "signature": self._id})
        yield named_event("content_block_stop", {"index": self._index})
        self._open = None

    def _block_delta(self, delta: dict[str, str]) -> bytes:
        return named_event("content_block_delta", {"index": self._index, "delta": delta})

    # -- both

    @staticmethod
    def _empty_block(first: Delta) -> dict[str, Any]:
        if first.kind == "tool_call":
            return {"type": "tool_use", "id": first.call_id, "name": first.name, "input": {}}
        if first.kind == "reasoning":
            return {"type": "thinking", "thinking": "", "signature": ""}
        return {"type": "text", "text": ""}

    def _end_of(self, choice: ChoiceRecord | None) -> dict[str, Any]:
        """Why an answer ended; nothing yet where there is none."""
        if choice is None or choice.finish is None:
            return {"stop_reason": None, "stop_sequence": None}
        finish = choice.finish
        if finish.stop:
            return {"stop_reason": "stop_sequence", "stop_sequence": finish.stop}
        reason = _REASONS.get(finish.reason)
        if reason == "end_turn" and self._called:
            reason = "tool_use"
        if reason == "max_tokens" and self._clipped:
            reason = "model_context_window_exceeded"
        return {"stop_reason": reason, "stop_sequence": None}

    def _timings(self, record: RequestRecord) -> dict[str, Any]:
        return {"timings": timings(record)} if self._timed else {}

    def _final_usage(self, record: RequestRecord, choice: ChoiceRecord) -> dict[str, Any]:
        usage = _usage(record.prompt_tokens, record.cached_tokens, record.output_tokens)
        if self._parser.spans is not None:
            thought = tokens_within(choice.texts, self._parser.spans)
            usage["output_tokens_details"] = {"thinking_tokens": thought}
        return usage


def _usage(prompt: int, cached: int, output: int) -> dict[str, Any]:
    """Anthropic counts tokens of the prompt once: those from the cache apart from the others."""
    return {
        "input_tokens": prompt - cached,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": cached,
        "output_tokens": output,
    }


def _tells(delta: Delta) -> bool:
    """A call begins with a name, maybe without arguments; other deltas are nothing without a text."""
    return bool(delta.text or delta.name)


def _block_of(delta: Delta) -> tuple[str, int]:
    return delta.kind, delta.index if delta.kind == "tool_call" else 0
