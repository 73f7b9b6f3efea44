"""Keys may ask for so much in a minute; through a real controller, requests wait their turn."""

import concurrent.futures
import time

import httpx
import pytest
from cluster.conftest import MockWorker, RunningController, ask

from lightllm.cluster.rates import RateLimited, Rates, Usage
from lightllm.http.key_ring import KeyTerms

BODY = {"model": "m", "prompt": "hello", "max_tokens": 4}


def test_a_minute_brings_so_many_requests_and_no_more_at_once():
    now = [0.0]
    rates, terms = Rates(lambda: now[0]), KeyTerms(requests_per_minute=6)
    for _ in range(6):
        rates.charge("key", terms, ask("a"))
    with pytest.raises(RateLimited) as refused:
        rates.charge("key", terms, ask("a"))
    assert (refused.value.status, refused.value.retry_after) == (429, 10)
    rates.charge("another", terms, ask("a"))
    now[0] = 10.0
    rates.charge("key", terms, ask("a"))
    with pytest.raises(RateLimited):
        rates.charge("key", terms, ask("a"))


def test_keys_of_one_tenant_share_what_it_may_ask_for():
    rates, terms = Rates(lambda: 0.0), KeyTerms("tenant", requests_per_minute=1)
    rates.charge("one", terms, ask("a"))
    with pytest.raises(RateLimited):
        rates.charge("two", terms, ask("a"))


@pytest.mark.parametrize(
    "answer, tokens",
    [
        (b'{"usage": {"prompt_tokens": 7, "completion_tokens": 20, "total_tokens": 27}}', 27),
        (b'data: {"usage":{"input_tokens":3,"output_tokens":2}}\n\n', 5), (b"data: {}\n\n" * 9, 100 + 9), (b"{}", 100 + 50),
        (b'{"text": "\\"completion_tokens\\": 9999"}', 100 + 50),
    ],
)  # fmt: skip
def test_tokens_are_those_that_the_answer_tells_of(answer, tokens):
    usage, asked = Usage(), ask("a" * 400, output=50)
    for byte in range(0, len(answer), 5):
        usage.look(answer[byte : byte + 5])
    if b"data:" in answer:
        usage = Usage()
        usage.look(answer)
    assert usage.tokens(asked) == tokens


def test_tokens_are_charged_by_the_estimate_and_settled_by_what_they_were():
    now = [0.0]
    rates, terms, asked = Rates(lambda: now[0]), KeyTerms(tokens_per_minute=600), ask("a" * 400, output=500)
    charge = rates.charge("key", terms, asked)
    with pytest.raises(RateLimited):
        rates.charge("key", terms, asked)
    charge.usage.look(b'{"usage": {"prompt_tokens": 90, "completion_tokens": 10}}')
    charge.settle(True)
    charge.settle(True)
    with pytest.raises(RateLimited) as refused:
        rates.charge("key", terms, asked)
    assert refused.value.retry_after == 10  # 500 of 600 are there
    rates.charge("key", terms, ask("a" * 40, output=400)).settle(False)
    now[0] = 10.0
    rates.charge("key", terms, asked)


def test_a_key_gets_429_and_when_to_come_again(start, tmp_path):
    keys = tmp_path / "keys"
    keys.write_text("poor requests_per_minute=2\nrich\n")
    worker = start(MockWorker)
    running = start(RunningController, workers=[worker.url], api_key_file=str(keys))
    running.wait_for(lambda: len(running.registry) == 1)

    def post(key: str) -> httpx.Response:
        return httpx.post(running.url + "/v1/completions", json=BODY, headers={"x-api-key": key})

    assert [post("poor").status_code for _ in range(3)] == [200, 200, 429]
    refused = post("poor")
    assert 0 < int(refused.headers["retry-after"]) <= 30
    assert refused.json()["error"]["code"] == "rate_limit_exceeded"
    assert post("rich").status_code == 200
    keys.write_text("poor requests_per_minute=60\nrich\n")
    running.loop.call_soon_threadsafe(running.controller.reload)
    running.wait_for(lambda: post("poor").status_code == 200)


def test_requests_wait_where_all_workers_are_full_and_all_are_answered(cluster):
    running, workers = cluster(2, worker_requests=1)
    with concurrent.futures.ThreadPoolExecutor(12) as pool:
        answers = [
            *pool.map(lambda n: httpx.post(running.url + "/v1/completions", json=BODY, timeout=30), range(12))
        ]
    assert {answer.status_code for answer in answers} == {200}
    assert sum(len(worker.seen) for worker in workers) == 12


def test_who_waits_too_long_or_finds_no_room_is_told_when_to_come_again(cluster):
    running, (worker,) = cluster(1, worker_requests=1, queue_size=1, queue_timeout=0.5)
    worker.hold()
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        pending = [
            pool.submit(httpx.post, running.url + "/v1/completions", json=BODY, timeout=30) for _ in range(3)
        ]
        deadline = time.monotonic() + 20
        while sum(each.done() for each in pending) < 2:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        worker.go_on()
        answers = [each.result() for each in pending]
    assert sorted(answer.status_code for answer in answers) == [200, 503, 503]
    assert all("retry-after" in answer.headers for answer in answers if answer.status_code == 503)
    assert len(worker.seen) == 1


def test_a_client_that_leaves_while_it_waits_leaves_nothing_behind(cluster):
    running, (worker,) = cluster(1, worker_requests=1)
    worker.hold()
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        first = pool.submit(httpx.post, running.url + "/v1/completions", json=BODY, timeout=30)
        running.wait_for(lambda: worker.seen)
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(running.url + "/v1/completions", json=BODY, timeout=0.3)
        running.wait_for(
            lambda: b"lightllm_controller_waiting 0.0" in httpx.get(running.url + "/metrics").content
        )
        worker.go_on()
        assert first.result().status_code == 200
    assert len(worker.seen) == 1
    assert httpx.post(running.url + "/v1/completions", json=BODY).status_code == 200


@pytest.fixture
def bound(start, tmp_path):
    """bound(kind) -> a controller whose key `batch` has the priority 10, and a worker of this kind."""

    def begin(kind: str):
        keys = tmp_path / "keys"
        keys.write_text("batch priority=10\nfree\nboss admin\n")
        worker = start(MockWorker)
        running = start(RunningController, api_key_file=str(keys), unsigned_workers=True)
        status = {"model_names": ["m"], "speed": 1, "queue_length": 0}
        registration = {"worker_name": worker.url, "worker_status": status, "kind": kind}
        assert httpx.post(running.url + "/register_worker", json=registration).status_code == 200
        return running, worker

    return begin


@pytest.mark.parametrize(
    "path, said, sent",
    [
        ("/v1/completions", {}, {"priority": 10}), ("/v1/completions", {"priority": -3}, {"priority": 10}),
        ("/v1/completions", {"priority": 99}, {"priority": 99}), ("/v1/chat/completions", {"priority": "-3"}, {"priority": 10}),
        ("/v1/completions", {"priority": [1]}, {"priority": 10}), ("/v1/messages", {}, {"priority": 10}), ("/api/chat", {}, {"priority": 10}),
        ("/v1/responses", {"priority": None}, {"priority": 10}), ("/v1/embeddings", {}, {"priority": 10}),
        ("/generate", {}, {"parameters": {"priority": 10}}),
        ("/generate", {"priority": 99, "parameters": {"priority": -9, "n": 2}}, {"priority": 99, "parameters": {"priority": 10, "n": 2}}),
        ("/generate_stream", {"parameters": None}, {"parameters": {"priority": 10}}), ("/", {"parameters": 3}, {"parameters": 3}),
        ("/tokenize", {"priority": -3}, {"priority": -3}),
    ],
    ids=str,
)  # fmt: skip
def test_a_keys_priority_binds_the_servers_waiting_lists_too(bound, path, said, sent):
    running, worker = bound("lightllm")
    body = {"model": "m", "x": 1.50, **said}
    assert httpx.post(running.url + path, json=body, headers={"x-api-key": "batch"}).status_code == 200
    assert worker.seen.pop() == {"model": "m", "x": 1.50, **said, **sent}
    assert httpx.post(running.url + path, json=body, headers={"x-api-key": "free"}).status_code == 200
    assert worker.seen.pop() == body


@pytest.mark.parametrize(
    "said, sent",
    [({}, {}), ({"priority": -3}, {"priority": 10}), ({"priority": 99}, {"priority": 99})],
    ids=str,
)
def test_other_servers_get_no_priority_that_the_client_has_not_named(bound, said, sent):
    running, worker = bound("openai")
    httpx.post(running.url + "/v1/completions", json={"model": "m", **said}, headers={"x-api-key": "batch"})
    assert worker.seen == [{"model": "m", **sent}]
