"""API keys, CORS, request ids."""

from __future__ import annotations

import re
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import openai
import pytest
from fastapi.routing import APIRoute
from support.fake_engine import FakeEngine
from support.http_client import http_client

from lightllm.httpserver.page_routes import page_paths

OPEN = {"/health", "/healthz", "/liveness", "/readiness", "/ping"}
PAGE = page_paths()
"""Open to GET alone: files that are the same on every server."""


@pytest.fixture(scope="module")
def guarded(start_worker: Callable[..., Any]) -> Any:
    return start_worker(api_key=["first", "second-ключ"], allowed_origins=["http://page.example"])


@pytest.fixture
def client(guarded: Any, engine: FakeEngine) -> Iterator[httpx.Client]:
    with http_client(guarded.url) as client:
        yield client


def routes(guarded: Any) -> set[tuple[str, str]]:
    """Every (method, path) that the application has, including the framework's own."""
    from lightllm.httpserver.app import create_app

    found = set()
    pending = list(create_app(guarded.state).routes)
    while pending:
        route = pending.pop()
        pending += list(getattr(getattr(route, "original_router", None), "routes", []))
        path = getattr(route, "path", None)
        if path:
            found |= {(method, path) for method in (getattr(route, "methods", None) or {"GET"})}
    return found


def test_routes_are_found(guarded: Any) -> None:
    paths = {path for _, path in routes(guarded)}
    assert {"/generate", "/v1/chat/completions", "/metrics", "/docs", "/openapi.json", "/health"} <= paths


@pytest.mark.parametrize("host", [None, "x/health?", "127.0.0.1/liveness#"])
@pytest.mark.parametrize("key", [None, "wrong", "firs", "Bearer"])
def test_every_route_but_health_and_the_page_is_closed(
    client: httpx.Client, guarded: Any, host: str | None, key: str | None
) -> None:
    headers = ({"host": host} if host else {}) | ({"authorization": f"Bearer {key}"} if key else {})
    for method, path in sorted(routes(guarded)):
        path = re.sub(r"\{.*?\}", "x", path)
        status = client.request(method, path, headers=headers).status_code
        is_open = path in OPEN or (method == "GET" and path in PAGE)
        assert (status != 401) == is_open, (method, path, status)


def test_unknown_routes_are_closed_too(client: httpx.Client) -> None:
    for path in ("/nothing", "/health//", "/health/../generate", "/HEALTH", "/health%2f..%2fmetrics"):
        assert client.get(path).status_code == 401, path


def test_malformed_credentials(client: httpx.Client) -> None:
    for value in ("first", "Basic first", "Bearer", "Bearer first extra"):
        assert client.get("/version", headers={"authorization": value}).status_code == 401, value
    doubled = [("authorization", "Bearer first"), ("authorization", "Bearer first")]
    assert client.get("/version", headers=doubled).status_code == 401


def test_each_key_opens(client: httpx.Client) -> None:
    for key in (b"Bearer first", "bearer second-ключ".encode()):
        assert client.get("/version", headers={b"authorization": key}).status_code == 200


@pytest.mark.parametrize("header", ["x-api-key", "api-key"])
def test_keys_are_taken_where_other_clients_put_them(client: httpx.Client, header: str) -> None:
    assert client.get("/version", headers={header: "first"}).status_code == 200
    assert (
        client.get("/version", headers={header: "first", "authorization": "Basic proxy"}).status_code == 200
    )
    assert client.get("/version", headers={header: "wrong"}).status_code == 401
    assert client.get("/version", headers=[(header, "first"), (header, "first")]).status_code == 401
    assert (
        client.get("/version", params={header: "first"}, headers={"cookie": f"{header}=first"}).status_code
        == 401
    )


OPERATION = ("/flush_cache", "/start_profile", "/stop_profile", "/profiler_start", "/profiler_stop")


def refused(response: httpx.Response) -> bool:
    return response.status_code == 403 and "--admin_api_key" in response.text


@pytest.mark.parametrize(("number", "keys"), [(1, None), (2, ["user"])])
def test_with_an_admin_key_nobody_else_operates(
    start_worker: Callable[..., Any], engine: FakeEngine, number: int, keys: list[str] | None
) -> None:
    worker = start_worker(worker=number, api_key=keys, admin_api_key=["admin"])
    with http_client(worker.url) as client:
        for path in OPERATION:
            assert client.post(path).status_code == (401 if keys else 403), path
            assert client.post(path, headers={"authorization": "Bearer wrong"}).status_code == (
                401 if keys else 403
            )
            assert keys is None or refused(client.post(path, headers={"authorization": "Bearer user"})), path
            assert client.post(path + "%0A").status_code in (401, 403, 404), path
        admin = {"authorization": "Bearer admin"}
        assert client.post("/flush_cache", headers=admin).status_code == 200
        assert client.post("/generate", json={"inputs": "x"}, headers=admin).status_code == 200
        assert client.post("/generate", json={"inputs": "x"}).status_code == (401 if keys else 200)


def test_without_an_admin_key_every_key_operates(client: httpx.Client) -> None:
    assert client.post("/flush_cache", headers={"authorization": "Bearer first"}).status_code == 200


def test_a_request_is_aborted_by_its_own_key_and_by_admins(
    start_worker: Callable[..., Any], engine: FakeEngine
) -> None:
    workers = [
        start_worker(worker=number, httpserver_workers=5, api_key=["one", "two"], admin_api_key=["admin"])
        for number in (3, 4)
    ]
    engine.script.hold = True
    for number, (key, ends) in enumerate((("one", True), ("two", False), ("admin", True))):
        name = {"request_id": f"mine-{number}"}
        with ThreadPoolExecutor(1) as pool:
            answer = pool.submit(
                httpx.post, f"{workers[0].url}/generate", json={"inputs": "x", "parameters": {"max_new_tokens": 400}},
                headers={"x-request-id": name["request_id"], "x-api-key": "one"}, timeout=60,
            )  # fmt: skip
            engine.wait_for(lambda: engine.active == 1)
            for worker in workers:
                aborted = httpx.post(f"{worker.url}/abort_request", json=name, headers={"x-api-key": key})
                assert aborted.json() == {
                    "message": "Ok"
                }  # also for requests of others, which nobody can probe for
            if not ends:
                assert engine.active == 1 and not answer.done()
                httpx.post(f"{workers[1].url}/abort_request", json=name, headers={"x-api-key": "one"})
            assert answer.result().json()["finish_reason"] == "abort"
        engine.wait_for(lambda: engine.active == 0)


def test_official_client_gets_an_authentication_error(guarded: Any, engine: FakeEngine) -> None:
    messages: Any = [{"role": "user", "content": "x"}]
    with openai.OpenAI(base_url=f"{guarded.url}/v1", api_key="wrong", max_retries=0) as api:
        with pytest.raises(openai.AuthenticationError) as error:
            api.chat.completions.create(model="tiny", messages=messages)
        assert error.value.code == "invalid_api_key"
        assert error.value.response.headers["www-authenticate"] == "Bearer"
    with openai.OpenAI(base_url=f"{guarded.url}/v1", api_key="first", max_retries=0) as api:
        assert api.chat.completions.create(model="tiny", messages=messages).choices[0].message.content


def test_cors(client: httpx.Client) -> None:
    preflight = {
        "origin": "http://page.example",
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization,content-type",
    }
    response = client.options("/generate", headers=preflight)
    assert response.status_code == 200
    assert response.headers["access-control-allow-origin"] == "http://page.example"
    response = client.get("/version", headers={"origin": "http://page.example"})
    assert response.status_code == 401  # readable for the page all the same
    assert response.headers["access-control-allow-origin"] == "http://page.example"
    response = client.get("/health", headers={"origin": "http://other.example"})
    assert "access-control-allow-origin" not in response.headers


def test_request_id_comes_back(client: httpx.Client) -> None:
    assert client.get("/health", headers={"x-request-id": "my-id.7"}).headers["x-request-id"] == "my-id.7"
    made = client.get("/version").headers["x-request-id"]
    assert re.fullmatch("[0-9a-f]{32}", made)
    for bad in ("a" * 129, "a b", "<script>", "ä"):
        headers = {b"x-request-id": bad.encode()}
        assert re.fullmatch("[0-9a-f]{32}", client.get("/health", headers=headers).headers["x-request-id"])


def test_request_id_cannot_smuggle_a_header(guarded: Any) -> None:
    with socket.create_connection(("127.0.0.1", guarded.port)) as raw:
        raw.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\nX-Request-Id: a\tb\r\nConnection: close\r\n\r\n")
        answer = b""
        while part := raw.recv(4096):
            answer += part
    assert answer.startswith(b"HTTP/1.1 200") and b"a\tb" not in answer


def test_every_api_route_is_an_api_route(guarded: Any) -> None:
    from lightllm.httpserver.native.api import native_routes

    assert all(isinstance(route, APIRoute) for route in native_routes(guarded.state).routes)
