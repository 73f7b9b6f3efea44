"""One real server with the mock backend for all tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest
from support.http_client import http_client
from support.server import LightLLMServer

OPTIONS = [
    "--mock_backend",
    "step_ms=1",
    "--model_name",
    "demo",
    "--strict_model_name",
    "--default_max_new_tokens",
    "16",
    "--max_req_total_len",
    "2048",
    "--max_body_mb",
    "8",
]


@pytest.fixture(scope="session")
def server() -> Iterator[LightLLMServer]:
    with LightLLMServer(OPTIONS) as server:
        server.wait_ready()
        yield server


@pytest.fixture(scope="session")
def client(server: LightLLMServer) -> Iterator[httpx.Client]:
    with http_client(server.url, timeout=60) as client:
        yield client
