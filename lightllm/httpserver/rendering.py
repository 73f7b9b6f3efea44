"""Pieces of JSON and server-sent events that the renderers share."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Protocol

import msgspec
from pydantic import TypeAdapter

from lightllm.errors import RequestError
from lightllm.httpserver.record import ChoiceRecord, RequestRecord
from lightllm.parsers.deltas import Delta, DeltaParser
from lightllm.protocol.messages import Finish

json_bytes: Callable[[object], bytes] = msgspec.json.Encoder().encode
"""Compact UTF-8 JSON; strings are escaped in C."""

_LINE_ENDS = {c.encode(): f"\\u{ord(c):04x}".encode() for c in "\u0085\u2028\u2029"}
"""Characters that JSON leaves as they are, and that readers of text take for the end of a line (httpx does)."""

LARGE_ANSWER = 4096
"""Entries, tokens and log-probabilities, from which on an answer, or an echo, is put together in a thread."""

LOWEST_LOGPROB = -9999.0
"""Stands for minus infinity, which JSON does not have."""


class Renderer(Protocol):
    """Turns a record into the bytes of one API."""

    def answer(self, record: RequestRecord) -> bytes:
        """The whole answer of a finished record, JSON."""

    def preparation(self, record: RequestRecord) -> Callable[[], None] | None:
        """What a thread may do before `events`: the part of it that is large and changes no more. None: nothing."""

    def events(self, record: RequestRecord) -> list[bytes]:
        """Server-sent events for all that has not been sent; marks it as sent. Maybe none."""

    def error(self, error: RequestError) -> bytes:
        """A server-sent event for an error after the stream has begun."""

    def end(self, record: RequestRecord) -> list[bytes]:
        """The events that close a stream."""


def finite(logprob: float) -> float:
    """A log-probability as JSON can hold it. Raises `ValueError` for NaN: it must have ended its request before."""
    if logprob > LOWEST_LOGPROB:
        return logprob
    if math.isnan(logprob):
        raise ValueError("a log-probability is NaN")
    return LOWEST_LOGPROB


def finish_reason(finish: Finish | None) -> str | None:
    return None if finish is None else finish.reason


def event_json(data: object) -> bytes:
    """JSON for a server-sent event, which is one line: for every reader's idea of a line."""
    encoded = json_bytes(data)
    if not encoded.isascii():
        for character, escaped in _LINE_ENDS.items():
            encoded = encoded.replace(character, escaped)
    return encoded


def event(data: object) -> bytes:
    """A server-sent event in OpenAI's framing."""
    return b"data: %b\n\n" % event_json(data)


def named_event(kind: str, fields: dict[str, Any]) -> bytes:
    """A server-sent event that tells its kind twice: by its name, and as the `type` of its data."""
    return b"event: %b\ndata: %b\n\n" % (kind.encode(), event_json({"type": kind, **fields}))


_OBJECT = TypeAdapter(dict[str, Any])


def arguments_object(arguments: str) -> dict[str, Any]:
    """The arguments of a call as an object: what there is of them, where the answer was cut off, as Anthropic's clients read a
    stream. What is no object stands in one."""
    try:
        return _OBJECT.validate_json(arguments or "{}", experimental_allow_partial="on")
    except ValueError:
        return {"arguments": arguments}


DONE = b"data: [DONE]\n\n"


def new_deltas(choice: ChoiceRecord, parser: DeltaParser) -> list[Delta]:
    """What the text that a stream has not sent means; counts it as sent, and the end as told if it has come."""
    text = choice.take_text()
    deltas = parser.push(text) if text else []
    if choice.finish is not None and not choice.ended:
        choice.ended = True
        deltas = [*deltas, *parser.end()]
    return deltas
