"""Pieces of JSON and server-sent events that the renderers share."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from lightllm.protocol.messages import Finish

json_bytes: Callable[[object], bytes] = msgspec.json.Encoder().encode
"""Compact UTF-8 JSON; strings are escaped in C."""

LARGE_ANSWER = 4096
"""Entries, tokens and log-probabilities, from which on an answer, or an echo, is put together in a thread."""

LOWEST_LOGPROB = -9999.0
"""Stands for minus infinity, which JSON does not have."""


def finite(logprob: float) -> float:
    """A log-probability as JSON can hold it."""
    return logprob if logprob > LOWEST_LOGPROB else LOWEST_LOGPROB


def finish_reason(finish: Finish | None) -> str | None:
    return None if finish is None else finish.reason


def event(data: object) -> bytes:
    """A server-sent event in OpenAI's framing."""
    return b"data: %b\n\n" % json_bytes(data)


DONE = b"data: [DONE]\n\n"
