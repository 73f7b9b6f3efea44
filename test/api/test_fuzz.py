"""Fuzz, against our own OpenAPI schema and of what strangers may send: no 5xx but the 503 of a full waiting list."""

from __future__ import annotations

import functools
import json
import re
from collections import Counter
from collections.abc import Callable

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import Case, GenerationMode
from schemathesis.checks import CHECKS
from support import hostile_run
from support.server import LightLLMServer

CHECK_NAMES = [
    "not_a_server_error", "status_code_conformance", "content_type_conformance", "response_schema_conformance"
]  # fmt: skip
ROUTES = [
    ("POST", "/generate"), ("POST", "/generate_stream"), ("POST", "/tokens"), ("POST", "/abort_request"),
    ("POST", "/v1/completions"), ("POST", "/v1/chat/completions"), ("POST", "/flush_cache"), ("GET", "/v1/models"), ("GET", "/token_load"), ("GET", "/load"),
    ("GET", "/health"), ("GET", "/healthz"), ("GET", "/liveness"), ("GET", "/readiness"), ("GET", "/get_model_name"),
    ("GET", "/metrics"), ("GET", "/version"), ("POST", "/get_score"), ("POST", "/readiness"), ("POST", "/liveness"),
    ("POST", "/get_model_name"), ("GET", "/ping"), ("POST", "/ping"), ("POST", "/"), ("POST", "/tokenize"), ("POST", "/detokenize"),
    ("POST", "/v1/embeddings"), ("POST", "/classify"), ("POST", "/v1/classify"), ("POST", "/score"), ("POST", "/v1/score"),
    ("POST", "/rerank"), ("POST", "/v1/rerank"), ("POST", "/v2/rerank"), ("GET", "/tokenizer_info"), ("POST", "/v1/completions/render"), ("POST", "/v1/chat/completions/render"),
    ("POST", "/get_server_info"), ("POST", "/get_weight_version"), ("GET", "/get_server_info"), ("GET", "/get_weight_version"),
    ("GET", "/info"), ("GET", "/profiler_start"), ("GET", "/profiler_stop"), ("POST", "/v1/responses"),
    ("POST", "/v1/responses/{response_id}/cancel"), ("GET", "/v1/responses/{response_id}"),
    ("GET", "/v1/responses/{response_id}/input_items"), ("DELETE", "/v1/responses/{response_id}"),
    ("POST", "/v1/messages"), ("POST", "/v1/messages/count_tokens"),
    ("POST", "/api/chat"), ("POST", "/api/generate"), ("POST", "/api/show"), ("POST", "/api/embed"), ("POST", "/api/embeddings"), ("GET", "/api/tags"), ("GET", "/api/ps"), ("GET", "/api/version"),
]  # fmt: skip


@pytest.fixture(scope="session")
def api(server: LightLLMServer) -> schemathesis.BaseSchema:
    return schemathesis.openapi.from_url(f"{server.url}/openapi.json")


sent: Counter[str] = Counter()
"""Cases by path."""


def send(case: Case) -> None:
    """A documented status, a documented content type, an error in its API's shape, and never a 5xx except 503 with Retry-After."""
    response = case.call(timeout=60)
    sent[case.path] += 1
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
        assert error["type"] in ("invalid_request_error", "server_error", "not_found_error"), body
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


def fuzz(api: schemathesis.BaseSchema, method: str, path: str, mode: GenerationMode, examples: int) -> None:
    strategy = api[path][method].as_strategy(generation_mode=mode)
    run: Callable[[Case], None] = functools.partial(send)

    @settings(
        max_examples=examples, deadline=None, database=None, derandomize=examples < 100,
        phases=[Phase.explicit, Phase.generate, Phase.shrink], suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(case=strategy)
    def check(case: Case) -> None:
        run(case)

    check()


@pytest.mark.parametrize("mode", list(GenerationMode))
@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_fuzz(api: schemathesis.BaseSchema, method: str, path: str, mode: GenerationMode) -> None:
    has_body = "requestBody" in api.raw_schema["paths"][path][method.lower()]
    if mode is GenerationMode.NEGATIVE and not has_body:
        pytest.skip("nothing to get wrong in a request without parameters")
    fuzz(api, method, path, mode, examples=12)


LONG, LONG_WHERE_SLOW = 480, 160
"""Cases a route and mode, 20,000 in all; fewer where drawing one takes longest."""
SLOW = ("/v1/responses", "/v1/chat/completions", "/v1/messages", "/v1/messages/count_tokens")


@pytest.mark.slow
@pytest.mark.parametrize("mode", list(GenerationMode))
@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_fuzz_long(api: schemathesis.BaseSchema, method: str, path: str, mode: GenerationMode) -> None:
    has_body = "requestBody" in api.raw_schema["paths"][path][method.lower()]
    if mode is GenerationMode.NEGATIVE and not has_body:
        pytest.skip("nothing to get wrong in a request without parameters")
    before = sum(sent.values())
    slow = path in SLOW and mode is GenerationMode.POSITIVE
    fuzz(api, method, path, mode, examples=LONG_WHERE_SLOW if slow else LONG)
    print(f"{method} {path} {mode.value}: {sum(sent.values()) - before} cases")


def test_every_route_is_fuzzed(api: schemathesis.BaseSchema) -> None:
    documented = {(method.upper(), path) for path, item in api.raw_schema["paths"].items() for method in item}
    profiles = {
        ("POST", "/start_profile"),
        ("POST", "/stop_profile"),
        ("POST", "/profiler_start"),
        ("POST", "/profiler_stop"),
    }  # they take no body, and write a file each
    aliases = {("POST", "/v1/tokenize"), ("POST", "/v1/detokenize")}
    assert {(m, p) for m, p in documented if m == "POST"} - profiles - aliases <= set(ROUTES)


def test_the_server_is_undisturbed(client: httpx.Client) -> None:
    body = {"inputs": "hello", "parameters": {"max_new_tokens": 3, "ignore_eos": True}}
    assert client.post("/generate", json=body).json()["count_output_tokens"] == 3


def test_hostile_requests_are_answered_and_leave_a_stream_alone(server: LightLLMServer) -> None:
    """`test/soak/test_fuzz.py` is its long form."""
    report = hostile_run.run(server.url, cases=300, seed=1)
    print(report)
    assert report.problems == []
    assert report.statuses[200] > 30 and report.statuses[400] > 30 and len(report.kinds) == 9
    assert not re.search("Traceback|error id", server.log)
