"""Cases that Schemathesis makes of our own OpenAPI schema, and what every answer to one has to be."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence

import httpx
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis import Case, GenerationMode
from schemathesis.checks import CHECKS

CHECK_NAMES = [
    "not_a_server_error", "status_code_conformance", "content_type_conformance", "response_schema_conformance"
]  # fmt: skip

KINDS = ("invalid_request_error", "server_error", "not_found_error", "timeout_error")
"""Types of errors in OpenAI's shape; the last one where a case has a `timeout`."""

sent: Counter[tuple[str, str, int]] = Counter()
"""Cases by method, path and status."""


def fuzz(
    api: schemathesis.BaseSchema,
    method: str,
    path: str,
    mode: GenerationMode,
    examples: int,
    known: Mapping[str, Sequence[str]] | None = None,
) -> dict[int, int]:
    """Sends that many cases; how many had each status. known: values of a parameter of the path, one of which half of the cases
    have."""
    before = sent.copy()
    given_ids: st.SearchStrategy[dict[str, str]] = st.fixed_dictionaries(
        {name: st.sampled_from(values) for name, values in (known or {}).items()}
    )

    @settings(
        max_examples=examples, deadline=None, database=None, derandomize=examples < 100,
        phases=[Phase.explicit, Phase.generate, Phase.shrink], suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(case=api[path][method].as_strategy(generation_mode=mode), ids=st.just({}) | given_ids)
    def check(case: Case, ids: dict[str, str]) -> None:
        if ids:
            case.path_parameters.update(ids)
        send(case)

    check()
    return {
        status: count
        for (*where, status), count in sorted((sent - before).items())
        if where == [method, path]
    }


def has_body(api: schemathesis.BaseSchema, method: str, path: str) -> bool:
    return "requestBody" in api.raw_schema["paths"][path][method.lower()]


def send(case: Case) -> None:
    """A documented status, a documented content type, an error in its API's shape, and never a 5xx except 503 with Retry-After."""
    response = case.call(timeout=60)
    sent[case.method, case.path, response.status_code] += 1
    if response.status_code >= 400:
        check_shape(case.path, response.status_code, response.content)
    if response.status_code == 503:
        assert "retry-after" in response.headers
        return
    case.validate_response(response, checks=CHECKS.get_by_names(CHECK_NAMES))


def check_shape(path: str, status: int, content: bytes) -> None:
    """Of an error: Anthropic's, OpenAI's, Ollama's, TGI's, or LightLLM's two in one."""
    body = json.loads(content)
    error = body["error"]
    if path.startswith("/v1/messages"):
        assert body.keys() == {"type", "error"} and body["type"] == "error"
        assert error.keys() == {"type", "message"} and error["type"].endswith("_error"), body
        message = error["message"]
    elif path.startswith("/v1/"):
        assert body.keys() == {"error"} and error.keys() == {"message", "type", "param", "code"}, body
        assert error["type"] in KINDS, body
        message = error["message"]
    elif path.startswith("/api/"):
        assert body.keys() == {"error"}
        message = error
    elif path == "/":
        assert body.keys() == {"error", "error_type"}
        assert body["error_type"] in ("validation", "generation", "overloaded"), body
        message = error
    else:
        assert body.keys() - {"param"} == {"message", "error"} and body["message"] == error["message"], body
        assert error.keys() == {"message", "type", "param", "code"} and error["code"] == status, body
        message = error["message"]
    assert isinstance(message, str) and message


def kept_responses(url: str, count: int = 4) -> list[str]:
    """Ids of responses that the server keeps; half of them run in the background."""
    bodies = [{"input": "Hi", "max_output_tokens": 4, "background": i % 2 == 0} for i in range(count)]
    answers = [httpx.post(f"{url}/v1/responses", json=body, timeout=60) for body in bodies]
    return [answer.raise_for_status().json()["id"] for answer in answers]
