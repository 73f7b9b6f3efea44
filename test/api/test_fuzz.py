"""Fuzz against our own OpenAPI schema: whatever is sent, no 5xx but the 503 of a full waiting list."""

from __future__ import annotations

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis import Case
from schemathesis.checks import CHECKS
from support.server import LightLLMServer

SETTINGS = {
    "deadline": None,
    "database": None,
    "suppress_health_check": [HealthCheck.filter_too_much, HealthCheck.too_slow, HealthCheck.data_too_large],
}


@pytest.fixture(scope="session")
def api(server: LightLLMServer) -> schemathesis.BaseSchema:
    return schemathesis.openapi.from_url(f"{server.url}/openapi.json")


schema = schemathesis.pytest.from_fixture("api")


def check(case: Case, client: httpx.Client) -> None:
    """A documented status, a documented content type, and never a 5xx except 503 with Retry-After."""
    response = case.call(timeout=60)
    if response.status_code == 503:
        assert "retry-after" in response.headers
        return
    names = (
        "not_a_server_error",
        "status_code_conformance",
        "content_type_conformance",
        "response_schema_conformance",
    )
    case.validate_response(response, checks=CHECKS.get_by_names(list(names)))


@schema.parametrize()
@settings(max_examples=15, **SETTINGS)
def test_fuzz(case: Case, client: httpx.Client) -> None:
    check(case, client)


@pytest.mark.slow
@schema.parametrize()
@settings(max_examples=1000, **SETTINGS)
def test_fuzz_long(case: Case, client: httpx.Client) -> None:
    check(case, client)


def test_the_server_is_undisturbed(client: httpx.Client) -> None:
    body = {"inputs": "hello", "parameters": {"max_new_tokens": 3, "ignore_eos": True}}
    assert client.post("/generate", json=body).json()["count_output_tokens"] == 3
    assert all(value == 0 for value in client.get("/token_load").json().values())
