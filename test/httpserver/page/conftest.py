"""A browser before a real Http Server with a scripted engine."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from support.browser import WHY_NOT, open_browser, open_page


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    if WHY_NOT:
        pytest.skip(WHY_NOT)
    with open_browser() as browser:
        yield browser


@pytest.fixture
def page(browser: Any, worker: Any, engine: Any) -> Iterator[Any]:
    """The page of the server, on a desktop."""
    with open_page(browser, worker.url) as page:
        yield page


@pytest.fixture
def ask(page: Any) -> Callable[[str], None]:
    """Types a message and sends it."""

    def type_and_send(text: str) -> None:
        page.get_by_label("Message", exact=True).press_sequentially(text)
        page.keyboard.press("Enter")

    return type_and_send
