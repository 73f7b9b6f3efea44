"""Every number that a client may send, at the extremes of JSON: it is used, or refused with its field's name; never a 500."""

from __future__ import annotations

import json
import re
from typing import Any

import httpx
import pytest
from support.fake_engine import FakeEngine

from lightllm.httpserver.native.models import Parameters
from lightllm.httpserver.openai.models import ChatRequest, CompletionRequest

EXTREMES = (
    "0", "-0.0", "-1", "2147483647", "2147483648", "4294967296", "9223372036854775807", "9223372036854775808",
    "-9223372036854775808", "-9223372036854775809", "18446744073709551615", "18446744073709551616", "1e308", "-1e308",
    "1e-300", "-1e-300", "5e-324", "1e-400", "1e400", "-1e400", "0.5", "1" + "0" * 400, "-1" + "0" * 400, "9" * 5000,
    "NaN", "Infinity", "-Infinity",
)  # fmt: skip
"""As JSON text: what json.dumps would not write is sent too."""

FEW = ("0", "-1", "9223372036854775808", "1e308", "1" + "0" * 400)
"""For fields that take no number at all, and those that are tried with all of them elsewhere."""

WHERE = {
    "exponential_decay_length_penalty": ("[%s, 2]", "[1, %s]", "[%s, %s]"),
    "logit_bias": ('{"1": %s}', '{"%s": 1}'),
    "stop_sequences": ("[[%s]]", "[%s]"),
    "stop": ("[%s]",),
    "stop_token_ids": ("[%s]", "[1, %s]"),
    "allowed_token_ids": ("[%s]",),
    "inputs": ("[%s]",),
    "prompt": ("[%s]", "[[%s]]"),
    "chat_template_kwargs": ('{"x": %s}',),
    "guided_json": ('{"type": "integer", "minimum": %s}', '{"type": "string", "minLength": %s}', '{"const": %s}'),
    "response_format": (
        '{"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "number", "multipleOf": %s}}}',
    ),
    "structured_outputs": ('{"json": {"type": "array", "maxItems": %s}}', '{"choice": [%s]}'),
    "guided_choice": ("[%s]",),
}  # fmt: skip
"""Where the number stands inside a field's value; the other fields are the number itself."""

NOT_NUMBERS = {"model", "user", "messages", "tools", "tool_choice", "stream_options"}
"""Fields whose values are texts or objects of other fields; `user` and `tool_choice` may be anything."""


def fields(model: type) -> list[str]:
    return sorted(set(model.model_fields) - NOT_NUMBERS)  # type: ignore[attr-defined]


CASES = [
    *(("/generate", field) for field in [*fields(Parameters), "inputs"]),
    *(("/v1/completions", field) for field in fields(CompletionRequest)),
    *(("/v1/chat/completions", field) for field in fields(ChatRequest)),
]


def body(path: str, field: str, value: str) -> bytes:
    """`field` with a value that is JSON text already."""
    if path == "/generate":
        if field == "inputs":
            return b'{"inputs": %b, "parameters": {"max_new_tokens": 4}}' % value.encode()
        parameters = f'"{field}": {value}' + (', "max_new_tokens": 4' if field != "max_new_tokens" else "")
        return f'{{"inputs": "one two", "parameters": {{"do_sample": true, {parameters}}}}}'.encode()
    rest = (
        {"prompt": '"one two"'}
        if path == "/v1/completions"
        else {"messages": '[{"role": "user", "content": "x"}]'}
    )
    if field == "top_logprobs":
        rest["logprobs"] = "true"
    if field not in ("max_tokens", "max_completion_tokens"):
        rest["max_tokens"] = "4"
    rest[field] = value
    return ("{" + ", ".join(f'"{name}": {text}' for name, text in rest.items()) + "}").encode()


@pytest.fixture(autouse=True)
def short_answers(engine: FakeEngine) -> None:
    engine.script.answer = "one"


@pytest.mark.parametrize(("path", "field"), CASES)
def test_an_extreme_number_is_used_or_refused_by_name(client: httpx.Client, path: str, field: str) -> None:
    """Both bodies of /v1 have most fields from one class: a chat meets few numbers there."""
    shared = path == "/v1/chat/completions" and field in CompletionRequest.model_fields
    check(client, path, field, FEW if shared or takes_no_number(path, field) else EXTREMES)


@pytest.mark.slow
@pytest.mark.parametrize(("path", "field"), CASES)
def test_an_extreme_number_is_used_or_refused_by_name_all(
    client: httpx.Client, path: str, field: str
) -> None:
    check(client, path, field, EXTREMES)


def check(client: httpx.Client, path: str, field: str, extremes: tuple[str, ...]) -> None:
    for pattern in WHERE.get(field, ("%s",)):
        for extreme in extremes:
            content = body(path, field, pattern.replace("%s", extreme))
            response = client.post(path, content=content)
            case = f"{content[:200]!r}: {response.status_code} {response.text[:300]}"
            if response.status_code == 200:
                json.loads(response.text, parse_constant=refuse_constant)
                continue
            assert response.status_code in (400, 408, 422), case
            assert names(response, field) or is_no_json(extreme), case


def takes_no_number(path: str, field: str) -> bool:
    """Switches and texts."""
    model = {"/generate": Parameters, "/v1/completions": CompletionRequest}.get(path, ChatRequest)
    kinds = str(model.model_fields[field].annotation) if field in model.model_fields else "int"
    return field not in WHERE and "int" not in kinds and "float" not in kinds


def refuse_constant(text: str) -> None:
    raise AssertionError(f"the answer holds {text}, which is no JSON")


def is_no_json(extreme: str) -> bool:
    """Or has more digits than the parser takes."""
    return bool(re.search("[NI]", extreme)) or len(extreme) > 4300


def names(response: httpx.Response, field: str) -> bool:
    answer = response.json()
    answer = answer.get("error", answer)
    other = {"guided_json": "guided_json", "best_of": "n", "n": "best_of", "stop_sequences": "stop"}.get(
        field, field
    )
    return any(name in (answer.get("param") or "") or name in answer["message"] for name in (field, other))


REFUSED: list[tuple[str, str, Any]] = [
    ("/generate", "exponential_decay_length_penalty", [2**31, 2]),
    ("/generate", "exponential_decay_length_penalty", [2**63, 2]),
    ("/generate", "exponential_decay_length_penalty", [10**400, 1.5]),
    ("/generate", "exponential_decay_length_penalty", [1, 10**400]),
    ("/v1/completions", "repetition_penalty", 1e-300),
    ("/v1/completions", "repetition_penalty", 0.009),
    ("/generate", "timeout", 1e10),
    ("/v1/completions", "timeout", 1e308),
]


@pytest.mark.parametrize(("path", "field", "value"), REFUSED)
def test_beyond_the_limit_the_answer_names_field_and_limit(
    client: httpx.Client, engine: FakeEngine, path: str, field: str, value: Any
) -> None:
    response = client.post(path, content=body(path, field, json.dumps(value)))
    assert response.status_code in (400, 422), response.text
    answer = response.json()
    answer = answer.get("error", answer)
    assert answer["param"] == field and re.search(r"\d", answer["message"])
    assert len(answer["message"]) < 300
    assert engine.added == []
