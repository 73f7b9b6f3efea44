"""What keeps pages in a browser away from a server without keys, and what gets past: everybody else."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from support.fake_engine import FakeEngine
from support.http_client import http_client

BODY = json.dumps({"inputs": "x", "parameters": {"max_new_tokens": 2}})
JSON = {"content_type": "application/json"}
POSTED = (
    "/", "/flush_cache", "/abort_request", "/generate", "/v1/completions", "/start_profile", "/stop_profile", "/profiler_start",
    "/tokenize",
)  # fmt: skip


def post(client: httpx.Client, path: str = "/generate", **headers: str) -> httpx.Response:
    return client.post(path, content=BODY, headers={name.replace("_", "-"): v for name, v in headers.items()})


@pytest.mark.parametrize("path", POSTED)
@pytest.mark.parametrize(
    "origin",
    [
        "https://evil.example",
        "http://localhost.evil.example",
        "http://127.0.0.1.evil.example",
        "null",
        "http://[",
    ],
)
def test_pages_of_other_sites_are_refused(client: httpx.Client, path: str, origin: str) -> None:
    for kind in ("application/json", "text/plain"):
        response = post(client, path, origin=origin, content_type=kind)
        assert response.status_code == 403
        assert "--allowed_origins" in response.text and "access-control-allow-origin" not in response.headers
    assert client.get("/v1/models", headers={"origin": origin}).status_code == 403


@pytest.mark.parametrize(
    "kind",
    [
        "text/plain",
        "text/plain;charset=UTF-8",
        "TEXT/PLAIN; application/json",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
    ],
)
@pytest.mark.parametrize("path", POSTED)
def test_bodies_that_browsers_send_without_asking_are_refused(
    client: httpx.Client, path: str, kind: str
) -> None:
    response = post(client, path, content_type=kind)
    assert response.status_code == 415 and "Content-Type: application/json" in response.text


def test_a_body_with_two_types_is_judged_by_both(client: httpx.Client) -> None:
    headers = [("content-type", "application/json"), ("content-type", "text/plain")]
    assert client.post("/generate", content=BODY, headers=headers).status_code == 415


@pytest.mark.parametrize(
    "kind", ["application/json", "application/json; charset=utf-8", "application/octet-stream"]
)
def test_other_types_of_bodies_are_taken(client: httpx.Client, kind: str) -> None:
    assert post(client, content_type=kind).status_code == 200


def test_a_body_without_a_type_is_taken(client: httpx.Client) -> None:
    request = client.build_request("POST", "/generate", content=BODY)
    assert "content-type" not in request.headers
    assert client.send(request).status_code == 200


@pytest.mark.parametrize(
    "origin",
    [
        "http://localhost:3000",
        "http://127.0.0.1:5173",
        "http://[::1]:80",
        "vscode-webview://1x2",
        "app://obsidian.md",
    ],
)
def test_pages_of_this_machine_and_applications_are_served(client: httpx.Client, origin: str) -> None:
    assert post(client, origin=origin, **JSON).status_code == 200


def test_a_page_of_the_server_behind_a_proxy_is_served(client: httpx.Client) -> None:
    """The proxy passes the name on, or changes it, which the browser's own verdict makes good."""
    origin = "https://llm.internal"
    assert post(client, origin=origin, host="llm.internal", **JSON).status_code == 200
    assert post(client, origin=origin, sec_fetch_site="same-origin", **JSON).status_code == 200
    assert post(client, origin=origin, sec_fetch_site="same-site", **JSON).status_code == 403


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8000", "127.0.0.1.evil.example", "localhost.example."]
)
@pytest.mark.parametrize(
    ("method", "path"), [("GET", "/v1/models"), ("GET", "/metrics"), ("POST", "/generate")]
)
def test_names_that_others_can_own_are_refused(
    client: httpx.Client, method: str, path: str, host: str
) -> None:
    response = client.request(
        method, path, content=BODY, headers={"host": host, "sec-fetch-site": "same-origin"}
    )
    assert response.status_code == 403 and "--allowed_hosts" in response.text


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "LOCALHOST:8000",
        "a.localhost",
        "127.0.0.1:1",
        "[::1]:8000",
        "10.0.0.7",
        "box",
        "box.local",
        "box.home.arpa",
        "h.internal",
        "",
    ],
)
def test_the_servers_own_names_are_known(client: httpx.Client, host: str) -> None:
    assert client.get("/v1/models", headers={"host": host}).status_code == 200


def test_health_checks_need_no_name(client: httpx.Client) -> None:
    for path in ("/health", "/healthz", "/liveness", "/readiness"):
        headers = {"host": "evil.example", "origin": "http://evil.example"}
        assert client.get(path, headers=headers).status_code == 200


def test_http_1_0_needs_no_host(worker: Any, client: httpx.Client) -> None:
    with socket.create_connection(("127.0.0.1", worker.port)) as raw:
        raw.sendall(b"GET /version HTTP/1.0\r\n\r\n")
        assert raw.recv(4096).startswith(b"HTTP/1.1 200")


def test_a_preflight_is_told_how_to_be_admitted(client: httpx.Client) -> None:
    headers = {"origin": "http://page.example", "access-control-request-method": "POST"}
    for path in ("/generate", "/v1/chat/completions"):
        response = client.options(path, headers=headers)
        assert response.status_code == 405 and "--allowed_origins" in response.text
    assert client.options("/generate").status_code == 405


@pytest.fixture(scope="module")
def opened(start_worker: Callable[..., Any]) -> Iterator[httpx.Client]:
    worker = start_worker(
        worker=3, allowed_hosts=["llm.example", "*.lab.example"], allowed_origins=["https://page.example"]
    )
    with http_client(worker.url) as client:
        yield client


def test_names_and_pages_can_be_allowed(opened: httpx.Client, engine: FakeEngine) -> None:
    for host, status in (
        ("llm.example:80", 200), ("a.lab.example", 200), ("lab.example", 403), ("x.llm.example", 403)
    ):  # fmt: skip
        assert opened.get("/v1/models", headers={"host": host}).status_code == status, host
    assert post(opened, origin="https://page.example", **JSON).status_code == 200
    assert post(opened, origin="https://other.example", **JSON).status_code == 403
    assert post(opened, origin="https://page.example", content_type="text/plain").status_code == 415


@pytest.mark.parametrize(
    "options", [{"worker": 4, "api_key": ["k"]}, {"worker": 5, "api_key": ["k"], "admin_api_key": ["a"]}]
)
def test_where_a_key_is_needed_it_is_enough(
    start_worker: Callable[..., Any], engine: FakeEngine, options: dict[str, Any]
) -> None:
    worker = start_worker(**options)
    headers = {"host": "llm.example", "origin": "https://page.example", "content-type": "text/plain"}
    with http_client(worker.url) as client:
        assert client.post("/generate", content=BODY, headers=headers).status_code == 401
        headers["authorization"] = "Bearer k"
        assert client.post("/generate", content=BODY, headers=headers).status_code == 200


def test_on_other_addresses_the_names_are_not_known(
    start_worker: Callable[..., Any], engine: FakeEngine
) -> None:
    """The worker of this test listens on 127.0.0.1 all the same; its options say otherwise."""
    worker = start_worker(worker=6, host="0.0.0.0")
    with http_client(worker.url) as client:
        assert client.get("/v1/models", headers={"host": "llm.example"}).status_code == 200
        assert post(client, host="llm.example", origin="https://evil.example").status_code == 403
        assert post(client, host="llm.example", origin="https://llm.example").status_code == 200
