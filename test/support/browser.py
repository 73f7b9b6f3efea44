"""A headless Chromium for tests of the page: driven through the DevTools protocol, and watched for errors and for requests to
anybody but the server."""

from __future__ import annotations

import contextlib
import importlib.util
import shutil
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
WHY_NOT = (
    "no Chromium on this machine (Debian: apt-get install chromium)"
    if CHROMIUM is None
    else "no playwright in this environment (make test-page installs it)"
    if importlib.util.find_spec("playwright") is None
    else ""
)
"""Why there is no browser here; empty if there is one."""
PATIENCE_MS = 60_000
"""For whatever a page is expected to do: a browser and a server on one busy core take their time."""
DESKTOP = {"width": 1280, "height": 800}
PHONE = {"width": 390, "height": 780}


@contextlib.contextmanager
def open_browser() -> Iterator[Any]:
    """A playwright `Browser`."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        try:
            yield browser
        finally:
            browser.close()


@contextlib.contextmanager
def open_page(browser: Any, url: str, allowed: tuple[str, ...] = (), **context: Any) -> Iterator[Any]:
    """A playwright `Page` that shows `url` in a context of its own. At the end no script has failed, nothing was reported on the
    console but what has one of `allowed` in it, and no request went anywhere but to the server. A failure prints the page's text."""
    problems: list[str] = []
    opened = browser.new_context(viewport=context.pop("viewport", DESKTOP), **context)
    opened.set_default_timeout(PATIENCE_MS)
    page = opened.new_page()

    def report(message: Any) -> None:
        if message.type in ("error", "warning") and not any(part in message.text for part in allowed):
            problems.append(f"{message.type} on the console: {message.text}")

    def request(sent: Any) -> None:
        parts = urlsplit(sent.url)
        if parts.scheme not in ("data", "blob") and parts.netloc != urlsplit(url).netloc:
            problems.append(f"request to {sent.url}")

    page.on("console", report)
    page.on("pageerror", lambda error: problems.append(f"script failed: {error}"))
    page.on("request", request)
    page.goto(url)
    try:
        yield page
    except BaseException:
        print(page.inner_text("body"), *problems, sep="\n")
        raise
    finally:
        opened.close()
    assert problems == []
