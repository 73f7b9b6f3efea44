"""The dashboard and the documentation in a headless Chromium, before a whole server."""

from __future__ import annotations

import concurrent.futures
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from support.browser import PATIENCE_MS, PHONE, open_page
from support.server import LightLLMServer

pytestmark = pytest.mark.slow

LOAD = {"inputs": "What is AI? " * 8, "parameters": {"max_new_tokens": 400, "ignore_eos": True}}


@pytest.fixture(scope="module")
def server() -> Iterator[LightLLMServer]:
    with LightLLMServer(["--mock_backend", "step_ms=5,slots=20000"]) as server:
        yield server


@pytest.fixture
def load(server: LightLLMServer) -> Iterator[None]:
    """Eight requests run, however long the browser takes to look; when the test has ended, all have been answered."""
    ended = threading.Event()

    def ask_again_and_again() -> set[int]:
        statuses = set()
        while not ended.is_set():
            statuses.add(httpx.post(server.url + "/generate", json=LOAD, timeout=120).status_code)
        return statuses

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        clients = [pool.submit(ask_again_and_again) for _ in range(8)]
        try:
            yield
        finally:
            ended.set()
        assert [client.result() for client in clients] == [{200}] * 8


def eventually(page: Any, condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE_MS / 1e3
    while time.monotonic() < deadline:
        if condition():
            return
        page.wait_for_timeout(50)
    raise AssertionError(f"it did not come true: {page.inner_text('body')}")


def figure(page: Any, label: str) -> str:
    return page.locator(".figures-row div", has_text=label).locator("dd").inner_text()


def test_the_dashboard_moves(browser: Any, server: LightLLMServer, load: None) -> None:
    with open_page(browser, server.url + "/#dashboard") as page:
        eventually(page, lambda: figure(page, "running") == "8")
        eventually(page, lambda: float(figure(page, "output tokens/s").replace(",", "")) > 8)
        eventually(page, lambda: figure(page, "median ITL").endswith("ms"))
        plot = page.get_by_role("img", name="Tokens a second:")
        before = plot.locator("path").first.get_attribute("d")
        eventually(page, lambda: plot.locator("path").first.get_attribute("d") != before)
        eventually(page, lambda: page.locator(".kv-own .value").inner_text() != "0")
        said = page.get_by_role("img", name="are in the radix tree").get_attribute("aria-label")
        assert said.startswith("Of 20000 slots ")
        plot.focus()
        page.keyboard.press("ArrowLeft")
        assert page.locator(".cross").count() == 1
        page.get_by_text("1 min", exact=True).click()
        assert (
            page.get_by_label("1 min", exact=True).is_checked() and page.get_by_text("30 s ago").count() == 6
        )


def test_the_map_adds_up_and_shows_what_the_radix_tree_keeps(browser: Any, server: LightLLMServer) -> None:
    def shown(page: Any, name: str) -> int:
        return int(page.locator(f".kv-{name} .value").inner_text().replace(",", "") or -1)

    httpx.post(server.url + "/generate", json=LOAD, timeout=60)
    with open_page(browser, server.url + "/#dashboard") as page:
        eventually(page, lambda: shown(page, "own") == 0 and shown(page, "kept") > 400)
        total = int(httpx.get(server.url + "/metrics/kv_map").json()["slots"])
        assert sum(shown(page, name) for name in ("own", "read", "kept", "free")) == total == 20000


def test_nothing_is_asked_while_nobody_looks(browser: Any, server: LightLLMServer) -> None:
    with open_page(browser, server.url + "/#dashboard") as page:
        eventually(page, lambda: page.get_by_role("img", name="are in the radix tree").is_visible())
        page.get_by_role("link", name="Chat").click()
        assert page.get_by_label("Message", exact=True).is_visible()
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        page.wait_for_timeout(2500)
        assert [url for url in asked if "/metrics" in url] == []


def test_the_dashboard_fits_a_phone(browser: Any, server: LightLLMServer) -> None:
    with open_page(
        browser, server.url + "/#dashboard", viewport=PHONE, is_mobile=True, has_touch=True
    ) as page:
        eventually(page, lambda: page.locator(".kv-free .value").inner_text())
        assert page.evaluate("document.documentElement.scrollWidth") == PHONE["width"]


def test_every_route_is_documented_and_can_be_tried(browser: Any, server: LightLLMServer) -> None:
    paths = httpx.get(server.url + "/openapi.json").json()["paths"]
    with open_page(browser, server.url + "/docs") as page:
        page.locator(".route").first.wait_for()
        shown = set(page.locator(".route > summary > code").all_inner_texts())
        assert shown == set(paths)
        page.get_by_label("Find a route").fill("penalty")
        left = page.locator(".route:visible > summary > code").all_inner_texts()
        assert "/generate" not in left or "/v1/chat/completions" in left
        assert "/health" not in left
        page.get_by_label("Find a route").fill("/v1/completions")
        page.locator(".route:visible > summary", has_text="/v1/completions").first.click()
        route = page.locator(".route[open]")
        assert route.locator("tbody th code", has_text="temperature").count() >= 1
        route.get_by_role("button", name="Send").click()
        route.get_by_text("completion_tokens").wait_for()
