"""Answers under JSON schemas of many features, at a temperature at which the model says anything: whatever ends fits its schema,
formats included, what is cut is the beginning of something that fits, and what cannot be enforced is refused with the reason."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import jsonschema_rs
import pytest
from support import schema_features
from support.http_client import http_client
from support.server import LightLLMServer

import lightllm.demo
from lightllm.constraints.grammars import bytes_tokenizer, make_matcher

MAX_TOKENS = 800
FOLDER = str(Path(lightllm.demo.__file__).parent)
WEIGHTS = {"random weights": "dummy", "demo model": "HF"}
REASONS = ("min/maxProperties only supported when all keys",)
"""Why a schema of `schema_features` is refused."""


@pytest.fixture(
    scope="module", params=[pytest.param(name, marks=() if name == "random weights" else pytest.mark.slow) for name in WEIGHTS]
)  # fmt: skip
def client(request: pytest.FixtureRequest) -> Iterator[httpx.Client]:
    options = ["--model_dir", FOLDER, "--load_way", WEIGHTS[request.param], "--max_total_token_num", "40000"]
    with LightLLMServer([*options, "--running_max_req_size", "32"]) as server:
        server.wait_ready()
        with http_client(server.url, timeout=300) as client:
            yield client


def ask(client: httpx.Client, number: int) -> str:
    """How the answer under a schema has ended, after a look at it."""
    schema = schema_features.schema(number)
    response = client.post(
        "/v1/chat/completions",
        json={
            "messages": [{"role": "user", "content": "Tell me something."}],
            "response_format": {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}},
            "temperature": 1.5, "seed": number, "max_tokens": MAX_TOKENS,
        },
    )  # fmt: skip
    about = f"{number}, {schema_features.feature(number)}: {json.dumps(schema)}\n{response.text}"
    if response.status_code == 400:
        assert any(reason in response.json()["error"]["message"] for reason in REASONS), about
        return "refused"
    assert response.status_code == 200, about
    choice = response.json()["choices"][0]
    text = choice["message"]["content"]
    if choice["finish_reason"] == "length":
        matcher = make_matcher(bytes_tokenizer(), "guided_json", json.dumps(schema))
        assert matcher.consume_tokens([*text.rstrip("\ufffd").encode()]), about
        return "cut"
    assert choice["finish_reason"] == "stop", about
    fits(schema, text, about)
    return "valid"


def fits(schema: dict[str, Any], text: str, about: str) -> None:
    validator = jsonschema_rs.validator_for(schema, validate_formats=True)
    error = next(validator.iter_errors(json.loads(text)), None)
    assert error is None, f"{error}\n{about}"


@pytest.mark.parametrize(
    "numbers", [range(0, 300, 13), pytest.param(range(3000), marks=pytest.mark.slow)], ids=len
)
def test_answers_fit_their_schemas(client: httpx.Client, numbers: range) -> None:
    with ThreadPoolExecutor(32) as pool:
        seen = Counter(pool.map(lambda number: ask(client, number), numbers))
    print(seen)
    assert seen["refused"] <= 0.04 * len(numbers) and seen["valid"] > 0.9 * len(numbers)


UNSUPPORTED: dict[str, dict[str, Any]] = {
    "not": {"not": {"type": "string"}},
    "uniqueItems": {"type": "array", "uniqueItems": True},
    "contains": {"type": "array", "contains": {"type": "integer"}},
    "if": {"if": {"type": "string"}, "then": {"maxLength": 3}},
    "dependentRequired": {"type": "object", "dependentRequired": {"a": ["b"]}},
    "propertyNames": {"type": "object", "propertyNames": {"maxLength": 3}},
    "unevaluatedProperties": {"type": "object", "unevaluatedProperties": False},
    "min/maxProperties": {"type": "object", "properties": {"a": {}}, "minProperties": 2},
    "oneOf": {"oneOf": [{"type": "integer"}, {"type": "number"}]},
    "Unknown format: iri": {"type": "string", "format": "iri"},
    "look-around": {"type": "string", "pattern": "(?=a)"},
    "/$defs/none": {"$ref": "#/$defs/none"},
    "registry": {"$ref": "https://example.org/schema"},
    "'deep' is unsatisfiable": {"type": "string", "minLength": 3, "maxLength": 2},
}


@pytest.mark.parametrize("reason", UNSUPPORTED)
@pytest.mark.parametrize("stream", [False, True])
def test_what_cannot_be_enforced_is_refused_with_the_reason(
    client: httpx.Client, reason: str, stream: bool
) -> None:
    schema = {"type": "object", "properties": {"deep": UNSUPPORTED[reason]}, "required": ["deep"]}
    if "$defs" in reason:
        schema["$defs"] = {}
    form = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}
    body = {"messages": [{"role": "user", "content": "x"}], "response_format": form, "stream": stream}
    response = client.post("/v1/chat/completions", json=body)
    assert response.status_code == 400
    error = response.json()["error"]
    assert reason in error["message"].rpartition("_error: ")[2], error
    assert error["param"].startswith("response_format")
