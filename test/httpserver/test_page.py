"""The page at `/`: its files as any browser gets them, with a key, without one, and switched off."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from support.fake_engine import FakeEngine
from support.http_client import http_client

import lightllm.httpserver
from lightllm.httpserver.page_routes import page_paths

FOLDER = Path(lightllm.httpserver.__file__).with_name("page")
FILES = sorted(path for path in FOLDER.iterdir())
NAMESPACE = "http://www.w3.org/2000/svg"
"""A name that looks like an address."""
MARKUP_SINKS = re.compile(
    r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|DOMParser|createContextualFragment|setHTML|\beval\(|new Function|"
    r"javascript:|srcdoc"
)


def test_the_page_is_served(client: httpx.Client) -> None:
    response = client.get("/")
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    assert response.text == (FOLDER / "index.html").read_text() and "<title>LightLLM</title>" in response.text


def test_every_file_of_the_folder_is_served_with_its_type(client: httpx.Client) -> None:
    types = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml", ".html": "text/html"}
    bodies = {client.get(path).content: client.get(path) for path in page_paths()}
    for path in FILES:
        response = bodies[path.read_bytes()]
        assert response.headers["content-type"].startswith(types[path.suffix]), path.name


def test_scripts_styles_and_requests_come_from_the_server_alone(client: httpx.Client) -> None:
    for path in page_paths():
        headers = client.get(path).headers
        policy = dict(rule.strip().split(" ", 1) for rule in headers["content-security-policy"].split(";"))
        assert policy["default-src"] == policy["base-uri"] == policy["form-action"] == "'none'"
        assert policy["frame-ancestors"] == "'none'"  # no other page can hold it
        assert {policy[name] for name in ("script-src", "style-src", "connect-src")} == {"'self'"}
        assert policy["require-trusted-types-for"] == "'script'"
        assert headers["x-content-type-options"] == "nosniff" and headers["referrer-policy"] == "no-referrer"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_a_file_names_no_other_place_and_makes_no_markup_of_texts(path: Path) -> None:
    text = path.read_text().replace(NAMESPACE, "")
    assert re.findall(r"""(?:https?:)?//[\w.-]+\.\w+|\bstyle=|\bon\w+=["']""", text) == []
    assert MARKUP_SINKS.findall(text) == []
    assert len(text.splitlines()) <= 400


def test_whatever_a_file_refers_to_is_there() -> None:
    served = page_paths()
    for path in FILES:
        text = path.read_text()
        modules = [f"/page/{name}" for name in re.findall(r'from "\./([\w.]+)"', text)]
        linked = re.findall(r'(?:src|href)="(page/[\w.]+)', text)
        assert {*modules, *(f"/{link}" for link in linked)} <= served, path.name
    assert "/page/main.js" in served


def test_a_browser_asks_each_time_and_gets_a_file_once(client: httpx.Client) -> None:
    for path in ("/", "/page/main.js"):
        first = client.get(path)
        assert first.headers["cache-control"] == "no-cache"
        again = client.get(path, headers={"if-none-match": first.headers["etag"]})
        assert again.status_code == 304 and again.content == b""
        assert again.headers["content-security-policy"] == first.headers["content-security-policy"]
        assert client.get(path, headers={"if-none-match": '"other"'}).content == first.content


def test_head_has_the_same_headers(client: httpx.Client) -> None:
    whole, head = client.get("/"), client.head("/")
    assert head.status_code == 200 and head.content == b""
    for name in ("content-type", "content-length", "etag", "content-security-policy"):
        assert head.headers[name] == whole.headers[name]


@pytest.mark.parametrize(
    "path",
    [
        "/page",
        "/page/",
        "/page/index.html",
        "/page/nothing.js",
        "/page/..%2fpage_routes.py",
        "/page/%2e%2e/app.py",
    ],
)
def test_nothing_else_is_found_there(client: httpx.Client, path: str) -> None:
    assert client.get(path).status_code == 404


def test_the_card_of_the_model_says_what_it_takes(client: httpx.Client) -> None:
    assert client.get("/v1/models").json()["data"][0]["input_modalities"] == ["text"]


@pytest.fixture(scope="module")
def with_key(start_worker: Callable[..., Any]) -> Any:
    return start_worker(worker=4, api_key=["right"])


@pytest.fixture(scope="module")
def without_page(start_worker: Callable[..., Any]) -> Iterator[httpx.Client]:
    worker = start_worker(worker=5, disable_page=True)
    with http_client(worker.url) as client:
        yield client


def test_the_page_needs_no_key_and_says_nothing_of_the_server(with_key: Any, engine: FakeEngine) -> None:
    with http_client(with_key.url) as client:
        for path in sorted(page_paths()):
            assert client.get(path).status_code == client.head(path).status_code == 200, path
            assert "tiny" not in client.get(path).text and "right" not in client.get(path).headers.values()
            for method in ("POST", "PUT", "DELETE", "OPTIONS"):
                assert client.request(method, path).status_code == 401, (method, path)
        assert client.get("/v1/models").status_code == client.get("/openapi.json").status_code == 401


def test_without_the_page_the_root_says_where_to_look(without_page: httpx.Client) -> None:
    message = without_page.get("/").json()["message"]
    assert "tiny" in message and "/v1" in message and "/openapi.json" in message
    assert {without_page.get(path).status_code for path in page_paths() - {"/"}} == {404}


def test_without_the_page_the_root_needs_a_key(start_worker: Callable[..., Any]) -> None:
    worker = start_worker(worker=6, disable_page=True, api_key=["right"])
    assert {httpx.get(worker.url + path).status_code for path in page_paths()} == {401}
    assert httpx.get(worker.url, headers={"x-api-key": "right"}).status_code == 200
