"""The controller's page: the server's own, with a table of workers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from cluster.conftest import MockWorker, RunningController
from support.browser import PHONE, WHY_NOT, open_browser, open_page

from lightllm.cluster.worker import State
from lightllm.httpserver.page_routes import page_paths


def test_the_page_is_the_servers_and_knows_that_this_is_a_controller(start):
    running = start(RunningController)
    page = httpx.get(running.url)
    assert (
        '<body data-server="controller">' in page.text
        and "default-src 'none'" in page.headers["content-security-policy"]
    )
    assert {httpx.get(running.url + path).status_code for path in page_paths(controller=True)} == {200}
    assert httpx.get(running.url + "/docs").status_code == 404


def test_the_page_needs_no_key_but_what_it_shows_does(start):
    running = start(RunningController, api_key=["right"])
    assert httpx.get(running.url).status_code == 200
    assert httpx.get(running.url + "/workers").status_code == httpx.post(running.url).status_code == 401
    without = start(RunningController, disable_page=True)
    assert httpx.get(without.url).status_code == 404


def test_how_much_of_the_prompts_was_cached_is_counted(cluster):
    running, _ = cluster(1)
    for _ in range(2):
        httpx.post(running.url + "/v1/completions", json={"model": "m", "prompt": "a" * 2560})
    (worker,) = httpx.get(running.url + "/workers").json()["workers"]
    assert (worker["prompt_tokens"], worker["cached_tokens"]) == (1280, 640)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if WHY_NOT:
        pytest.skip(WHY_NOT)
    with open_browser() as browser:
        yield browser


def words(*texts: str) -> list[bytes]:
    chunks = [
        {"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None}]} for text in texts
    ]
    chunks.append({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
    return [b"data: " + json.dumps(chunk).encode() + b"\n\n" for chunk in chunks] + [b"data: [DONE]\n\n"]


@pytest.mark.slow
@pytest.mark.parametrize("viewport", [None, PHONE])
def test_an_operator_sees_drains_and_removes_workers(browser, start, viewport):
    workers = [start(MockWorker, ("a",)), start(MockWorker, ("b",))]
    running = start(RunningController, workers=[workers[0].url])
    running.wait_for(lambda: len(running.registry) == 1)
    registration = {"worker_name": workers[1].url, "kind": "openai", "worker_status": {"model_names": ["b"]}}
    assert httpx.post(running.url + "/register_worker", json=registration).status_code == 200
    httpx.post(running.url + "/v1/completions", json={"model": "a", "prompt": "x" * 1024})
    with open_page(
        browser, running.url + "/#dashboard", **({"viewport": viewport} if viewport else {})
    ) as page:
        row = page.get_by_role("row").filter(has_text=workers[0].url)
        row.get_by_text("ready").wait_for()
        assert row.get_by_role("cell").nth(0).inner_text() == "a"
        page.get_by_role("button", name=f"Drain {workers[0].url}").click()
        row.get_by_text("draining").wait_for()
        assert running.registry.get(workers[0].url).state is State.DRAINING
        page.get_by_role("button", name=f"Undrain {workers[0].url}").click()
        row.get_by_text("ready").wait_for()
        page.get_by_role("button", name=f"Remove {workers[1].url}").click()
        page.get_by_role("row").filter(has_text=workers[1].url).wait_for(state="detached")
        assert len(running.registry) == 1


@pytest.mark.slow
def test_the_chat_talks_with_the_model_that_was_chosen(browser, start):
    workers = [start(MockWorker, ("a",)), start(MockWorker, ("b",))]
    running = start(RunningController, workers=[worker.url for worker in workers])
    running.wait_for(lambda: len(running.registry) == 2)
    workers[1].parts = words("Hello", " there")
    with open_page(browser, running.url) as page:
        page.get_by_label("Model").select_option("b")
        page.get_by_label("Message", exact=True).press_sequentially("Hi")
        page.keyboard.press("Enter")
        page.get_by_text("Hello there").wait_for()
        assert workers[1].seen[-1]["model"] == "b" and not workers[0].seen
