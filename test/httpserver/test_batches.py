"""Requests of many prompts: few of them wait in the Router at once, and all are answered."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from httpserver.conftest import Worker
from support.fake_engine import FakeEngine

from lightllm.protocol.messages import Refused

TOGETHER = 4
"""64 // 16"""


@pytest.fixture(scope="module")
def batching(start_worker: Callable[..., Worker]) -> Worker:
    return start_worker(max_waiting_requests=64)


def ask(worker: Worker, count: int, **fields: object) -> httpx.Response:
    body = {"prompt": [[5 + i] for i in range(count)], "max_tokens": 3, **fields}
    return httpx.post(f"{worker.url}/v1/completions", json=body, timeout=30)


def waiting(engine: FakeEngine) -> int:
    return sum(not tokens for tokens in engine.progress())


def test_the_first_prompt_decides_and_few_others_wait_at_once(batching: Worker, engine: FakeEngine) -> None:
    engine.script.hold = True
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(ask, batching, 100)
        engine.wait_for(lambda: len(engine.added) == TOGETHER)
        assert waiting(engine) == TOGETHER
        engine.script.hold = False
        response = answer.result()
    choices = response.json()["choices"]
    assert [choice["index"] for choice in choices] == list(range(100))
    assert all(choice["finish_reason"] == "length" for choice in choices)
    assert [message.prompt_ids.tolist() for message in engine.added] == [[5 + i] for i in range(100)]
    assert [message.follows for message in engine.added] == [False] + [True] * 99


def test_a_batch_that_is_refused_is_so_at_its_first_prompt(batching: Worker, engine: FakeEngine) -> None:
    engine.script.refuse = Refused([], "ServerOverloaded", "full", retry_after=2)
    response = ask(batching, 100)
    assert (response.status_code, response.headers["retry-after"]) == (503, "2")
    assert len(engine.added) == 1
    engine.wait_for(lambda: batching.engine.active == 0)


def test_an_abort_ends_what_has_not_been_sent_too(batching: Worker, engine: FakeEngine) -> None:
    engine.script.hold = True
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(ask, batching, 100, timeout=0.2)
        response = answer.result()
    assert response.status_code == 408
    engine.script.hold = False
    engine.wait_for(lambda: batching.engine.active == 0)


def test_after_a_restart_of_the_router_what_is_held_is_sent_once(
    batching: Worker, engine: FakeEngine
) -> None:
    engine.script.hold = True
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(ask, batching, 20)
        engine.wait_for(lambda: len(engine.added) == TOGETHER)
        engine.restart()
        engine.wait_for(lambda: len(engine.added) == 2 * TOGETHER)
        assert all(message.restored for message in engine.added[TOGETHER:])
        engine.script.hold = False
        assert len(answer.result().json()["choices"]) == 20
    assert len(engine.added) == 20 + TOGETHER


def test_answers_to_one_prompt_count_each(batching: Worker, engine: FakeEngine) -> None:
    engine.script.hold = True
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(ask, batching, 10, n=2)
        engine.wait_for(lambda: len(engine.added) == TOGETHER // 2)
        engine.script.hold = False
        assert len(answer.result().json()["choices"]) == 20
