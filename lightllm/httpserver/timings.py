"""How long a request took, for the client that asks (`return_timings`): the object that llama.cpp's server gives, and the wait."""

from __future__ import annotations

from typing import Any, Protocol

from lightllm.httpserver.record import RequestRecord


class AsksForTimings(Protocol):
    """A body with the field, and with llama.cpp's name for it."""

    return_timings: bool | None
    timings_per_token: bool | None


def wants_timings(body: AsksForTimings) -> bool:
    return bool(body.return_timings or body.timings_per_token)


def timings(record: RequestRecord) -> dict[str, Any]:
    """Milliseconds. Counts are of all prompts and answers, times of the request as a whole: several answers to it run at the
    same time. What did not take any time has no rate: null."""
    entered = record.entered or record.started
    computed = record.prompt_tokens - record.cached_tokens
    prompt_ms = _ms(record.first_token - entered) if record.first_token else 0.0
    # the first token came with the prompt
    decoded = record.output_tokens - len(record.choices)
    predicted_ms = _ms(record.last_token - record.first_token)
    return {
        "queue_ms": _ms(entered - record.started),
        "cache_n": record.cached_tokens,
        "prompt_n": computed,
        "prompt_ms": prompt_ms,
        "prompt_per_token_ms": _ratio(prompt_ms, computed),
        "prompt_per_second": _ratio(computed * 1e3, prompt_ms),
        "predicted_n": record.output_tokens,
        "predicted_ms": predicted_ms,
        "predicted_per_token_ms": _ratio(predicted_ms, decoded),
        "predicted_per_second": _ratio(decoded * 1e3, predicted_ms),
    }


def _ms(seconds: float) -> float:
    return round(max(0.0, seconds) * 1e3, 3)


def _ratio(value: float, by: float) -> float | None:
    return round(value / by, 3) if by > 0 and value > 0 else None
