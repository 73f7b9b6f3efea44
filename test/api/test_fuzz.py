"""Fuzz, against our own OpenAPI schema and of what strangers may send: no 5xx but the 503 of a full waiting list."""

from __future__ import annotations

import re

import httpx
import pytest
import schemathesis
from schemathesis import GenerationMode
from support import hostile_run
from support.api_fuzz import fuzz, has_body, kept_responses, sent
from support.server import LightLLMServer

ROUTES = [
    ("POST", "/generate"), ("POST", "/generate_stream"), ("POST", "/tokens"), ("POST", "/abort_request"),
    ("POST", "/v1/completions"), ("POST", "/v1/chat/completions"), ("POST", "/flush_cache"), ("GET", "/v1/models"), ("GET", "/token_load"), ("GET", "/load"),
    ("GET", "/health"), ("GET", "/healthz"), ("GET", "/liveness"), ("GET", "/readiness"), ("GET", "/get_model_name"),
    ("GET", "/metrics"), ("GET", "/metrics/history"), ("GET", "/metrics/kv_map"), ("GET", "/tokens"), ("GET", "/v1/models/{model}"),
    ("POST", "/v1/tokenize"), ("POST", "/v1/detokenize"), ("POST", "/profiler_start"), ("POST", "/profiler_stop"), ("POST", "/start_profile"), ("POST", "/stop_profile"),
    ("GET", "/version"), ("POST", "/get_score"), ("POST", "/readiness"), ("POST", "/liveness"),
    ("POST", "/get_model_name"), ("GET", "/ping"), ("POST", "/ping"), ("POST", "/"), ("POST", "/tokenize"), ("POST", "/detokenize"),
    ("POST", "/v1/embeddings"), ("POST", "/classify"), ("POST", "/v1/classify"), ("POST", "/score"), ("POST", "/v1/score"),
    ("POST", "/rerank"), ("POST", "/v1/rerank"), ("POST", "/v2/rerank"), ("GET", "/tokenizer_info"), ("POST", "/v1/completions/render"), ("POST", "/v1/chat/completions/render"),
    ("POST", "/get_server_info"), ("POST", "/get_weight_version"), ("GET", "/get_server_info"), ("GET", "/get_weight_version"),
    ("GET", "/info"), ("GET", "/profiler_start"), ("GET", "/profiler_stop"), ("POST", "/v1/responses"), ("POST", "/v1/responses/input_tokens"),
    ("POST", "/v1/responses/{response_id}/cancel"), ("GET", "/v1/responses/{response_id}"),
    ("GET", "/v1/responses/{response_id}/input_items"), ("DELETE", "/v1/responses/{response_id}"),
    ("POST", "/v1/messages"), ("POST", "/v1/messages/count_tokens"),
    ("POST", "/api/chat"), ("POST", "/api/generate"), ("POST", "/api/show"), ("POST", "/api/embed"), ("POST", "/api/embeddings"), ("GET", "/api/tags"), ("GET", "/api/ps"), ("GET", "/api/version"),
]  # fmt: skip


@pytest.fixture(scope="session")
def api(server: LightLLMServer) -> schemathesis.BaseSchema:
    return schemathesis.openapi.from_url(f"{server.url}/openapi.json")


def known_ids(server: LightLLMServer, path: str) -> dict[str, list[str]]:
    """Values of what is in the path that mean something, made for this route: it may delete them."""
    if "{response_id}" in path:
        return {"response_id": kept_responses(server.url)}
    return {"model": ["demo"]} if "{model}" in path else {}


@pytest.mark.parametrize("mode", list(GenerationMode))
@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_fuzz(
    server: LightLLMServer, api: schemathesis.BaseSchema, method: str, path: str, mode: GenerationMode
) -> None:
    if mode is GenerationMode.NEGATIVE and not has_body(api, method, path):
        pytest.skip("nothing to get wrong in a request without parameters")
    fuzz(api, method, path, mode, 12, known_ids(server, path))


LONG, LONG_WHERE_SLOW = 480, 160
"""Cases a route and mode, 30,000 in all; fewer where drawing one takes longest."""
SLOW = (
    "/v1/responses",
    "/v1/responses/input_tokens",
    "/v1/chat/completions",
    "/v1/messages",
    "/v1/messages/count_tokens",
)


@pytest.mark.slow
@pytest.mark.parametrize("mode", list(GenerationMode))
@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_fuzz_long(
    server: LightLLMServer, api: schemathesis.BaseSchema, method: str, path: str, mode: GenerationMode
) -> None:
    if mode is GenerationMode.NEGATIVE and not has_body(api, method, path):
        pytest.skip("nothing to get wrong in a request without parameters")
    slow = path in SLOW and mode is GenerationMode.POSITIVE
    statuses = fuzz(api, method, path, mode, LONG_WHERE_SLOW if slow else LONG, known_ids(server, path))
    print(f"{method} {path} {mode.value}: {statuses}; {sum(sent.values())} cases so far", flush=True)


def test_every_route_is_fuzzed(api: schemathesis.BaseSchema) -> None:
    documented = {(method.upper(), path) for path, item in api.raw_schema["paths"].items() for method in item}
    assert documented == set(ROUTES)


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
