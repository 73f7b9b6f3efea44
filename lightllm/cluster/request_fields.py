"""Where each API says how long an answer may be, how many there are, and how urgent it is: the fields that the servers obey. Others
of these meanings, which a body may have as well, say nothing: they must make no request look cheap, or urgent.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import msgspec

DEFAULT_OUTPUT = 256
"""Tokens that are expected of a request that says nothing."""
_MOST_OUTPUT = 1 << 20


class Fields(NamedTuple):
    """Of one API."""

    place: str = ""
    """The object that they are in; "": the body itself."""
    limits: tuple[str, ...] = ()
    """Of one answer, in tokens: the first that says a number above 0. None: nothing is generated."""
    counts: tuple[str, ...] = ()
    """Answers to one prompt: the largest."""
    prompts: str = ""
    """A list of prompts, each with answers of its own."""
    priority_place: str = ""
    has_priority: bool = True


_COMPLETION = Fields("", ("max_tokens",), ("n", "best_of"), "prompt")
_CHAT = Fields("", ("max_completion_tokens", "max_tokens"), ("n",))
_RESPONSE = Fields("", ("max_output_tokens",))
_MESSAGES = Fields("", ("max_tokens",))
_NATIVE = Fields("parameters", ("max_new_tokens",), ("n", "best_of"), "inputs", "parameters")
_OLLAMA = Fields("options", ("num_predict",))
_FASTCHAT = Fields("", ("max_new_tokens", "max_tokens"), ("best_of",), has_priority=False)
FIELDS: Mapping[str, Fields] = {
    "/v1/completions": _COMPLETION, "/v1/chat/completions": _CHAT, "/v1/responses": _RESPONSE, "/v1/messages": _MESSAGES,
    "/": _NATIVE, "/generate": _NATIVE, "/generate_stream": _NATIVE, "/api/generate": _OLLAMA, "/api/chat": _OLLAMA,
    "/worker_generate_stream": _FASTCHAT, "/worker_generate": _FASTCHAT, "/worker_get_embeddings": Fields(has_priority=False),
    **dict.fromkeys(
        ("/v1/embeddings", "/v1/rerank", "/v2/rerank", "/rerank", "/v1/score", "/score", "/v1/classify", "/classify", "/api/embed",
         "/api/embeddings"),
        Fields(),
    ),
}  # fmt: skip
"""By path; requests of all others compute next to nothing."""
_OTHER = Fields(has_priority=False)


def fields_of(path: str) -> Fields:
    return FIELDS.get(path, _OTHER)


def whole(value: Any) -> int | None:
    """A number as servers read it, which take 5.0 and "5" for 5; None: it is none."""
    if isinstance(value, str):
        try:
            return int(value)
        except ValueError:
            return None
    if isinstance(value, int | float) and int(value) == value:
        return int(value)
    return None


def output_tokens(path: str, values: Mapping[str, Any]) -> int:
    """The most that a request has generated, or an estimate."""
    fields = fields_of(path)
    if not fields.limits:
        return 0
    source = _object(values, fields.place)
    limits = (whole(source.get(name)) for name in fields.limits)
    limit = next((limit for limit in limits if limit is not None and limit > 0), DEFAULT_OUTPUT)
    counts = (whole(source.get(name)) or 1 for name in fields.counts)
    prompts = values.get(fields.prompts)
    several = isinstance(prompts, list) and bool(prompts) and isinstance(prompts[0], str | list)
    answers = max((1, *counts)) * (len(prompts) if isinstance(prompts, list) and several else 1)
    return min(limit * answers, _MOST_OUTPUT)


def priority(path: str, values: Mapping[str, Any]) -> int | None:
    """None: the request says none."""
    fields = fields_of(path)
    return whole(_object(values, fields.priority_place).get("priority")) if fields.has_priority else None


def with_priority(path: str, body: bytes, value: int) -> bytes:
    """The body with this priority, where its API has one; everything else in it is as it was."""
    fields = fields_of(path)
    if not fields.has_priority:
        return body
    values: dict[str, Any] = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
    place = fields.priority_place
    if not place:
        return msgspec.json.encode(values | {"priority": value})
    try:
        inner = msgspec.json.decode(values.get(place, b"{}"), type=dict[str, msgspec.Raw] | None) or {}
    except msgspec.ValidationError:
        return body  # no object: servers refuse it
    return msgspec.json.encode(values | {place: inner | {"priority": value}})


def _object(values: Mapping[str, Any], place: str) -> Mapping[str, Any]:
    found = values.get(place) if place else values
    return found if isinstance(found, dict) else {}
