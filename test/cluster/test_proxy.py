"""Through a real controller: requests reach a worker once, another one when it fails, and answers come back as they were sent."""

import concurrent.futures

import httpx
import pytest
from cluster.conftest import MockWorker, RunningController

from lightllm.cluster.worker import State

BODY = {"model": "m", "prompt": "hello", "max_tokens": 4}
STREAM = BODY | {"stream": True}


def quiet(running) -> bool:
    return all(
        (worker.in_flight, worker.prefill_tokens, worker.held_tokens) == (0, 0, 0)
        for worker in running.registry
    )


def test_an_answer_comes_back_whole_and_the_load_is_given_back(cluster):
    running, workers = cluster()
    answer = httpx.post(running.url + "/v1/completions", json=BODY, headers={"x-request-id": "mine"})
    assert answer.status_code == 200 and answer.json()["path"] == "/v1/completions"
    assert answer.headers["x-request-id"] == "mine"
    (seen,) = [worker for worker in workers if worker.seen]
    assert seen.seen == [BODY] and seen.headers[0]["x-request-id"] == "mine"
    running.wait_for(lambda: quiet(running))


def test_each_part_of_a_stream_arrives_when_it_is_sent(cluster):
    running, (worker,) = cluster(1)
    worker.parts = [b"data: %d\n\n" % n for n in range(5)]
    with httpx.stream("POST", running.url + "/v1/completions", json=STREAM) as answer:
        assert answer.headers["content-type"] == "text/event-stream"
        assert list(answer.iter_raw()) == worker.parts


def test_a_part_is_passed_on_before_the_next_one_exists(cluster):
    running, (worker,) = cluster(1)
    worker.parts = [b"data: first\n\n", b"data: second\n\n"]
    worker.waits_before = 1
    worker.hold()
    with httpx.stream("POST", running.url + "/v1/completions", json=STREAM, timeout=30) as answer:
        parts = answer.iter_raw()
        assert next(parts) == worker.parts[0]
        worker.go_on()
        assert b"".join(parts) == worker.parts[1]


@pytest.mark.parametrize("status", [429, 502, 503, 504])
def test_a_worker_that_refuses_for_load_is_passed_over(cluster, status):
    running, workers = cluster(3)
    for worker in workers[:2]:
        worker.status = status
    for _ in range(6):
        assert httpx.post(running.url + "/v1/completions", json=BODY).json()["from"] == workers[2].url
    running.wait_for(lambda: quiet(running))


def test_where_all_refuse_the_client_gets_what_the_last_one_said(cluster):
    running, workers = cluster(2)
    for worker in workers:
        worker.status = 503
    answer = httpx.post(running.url + "/v1/completions", json=BODY)
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "7")
    assert [len(worker.seen) for worker in workers] == [1, 1]


@pytest.mark.parametrize("status", [400, 404, 413, 500])
def test_an_error_that_another_worker_would_give_too_is_not_tried_again(cluster, status):
    running, workers = cluster(2)
    for worker in workers:
        worker.status = status
    assert httpx.post(running.url + "/v1/completions", json=BODY).status_code == status
    assert sum(len(worker.seen) for worker in workers) == 1


def test_a_worker_that_is_gone_is_passed_over_and_suspected(cluster, start):
    running, workers = cluster(2)
    workers[0].run(workers[0]._runner.cleanup())
    for _ in range(4):
        assert httpx.post(running.url + "/v1/completions", json=BODY).json()["from"] == workers[1].url
    gone = running.registry.get(workers[0].url)
    running.wait_for(lambda: gone.state in (State.SUSPECT, State.OUT))


def test_a_stream_that_breaks_before_its_first_part_is_another_workers(cluster):
    running, workers = cluster(2)
    workers[0].breaks_after = 0
    for _ in range(4):
        answer = httpx.post(running.url + "/v1/completions", json=STREAM)
        assert answer.content == b"".join(workers[1].parts)


@pytest.mark.parametrize(
    "path, begins", [("/v1/completions", b'data: {"error"'), ("/v1/messages", b"event: error\ndata: ")]
)
def test_a_stream_that_breaks_later_ends_with_an_error_in_its_apis_shape(cluster, path, begins):
    running, (worker,) = cluster(1)
    worker.breaks_after = 1
    answer = httpx.post(running.url + path, json=STREAM)
    first = worker.parts[0]
    assert answer.content.startswith(first) and answer.content[len(first) :].startswith(begins)
    assert b"broke off" in answer.content
    running.wait_for(lambda: quiet(running))


def test_nobody_left_is_an_error_of_the_gateway(cluster):
    running, workers = cluster(2)
    for worker in workers:
        worker.run(worker._runner.cleanup())
    answer = httpx.post(running.url + "/v1/completions", json=BODY)
    assert answer.status_code in (502, 503) and answer.json()["error"]["code"] in ("worker_lost", "no_worker")


def test_a_client_that_leaves_ends_the_request_on_its_worker(cluster):
    running, (worker,) = cluster(1)
    worker.hold()
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(running.url + "/v1/completions", json=BODY, timeout=0.5)
    assert worker.left.wait(20)
    running.wait_for(lambda: quiet(running))


def test_a_worker_that_is_out_ends_nothing_and_its_streams_do_not_wait_for_ever(cluster):
    running, (worker,) = cluster(1)
    worker.waits_before = 1
    worker.hold()
    with httpx.stream("POST", running.url + "/v1/completions", json=STREAM, timeout=30) as answer:
        parts = answer.iter_raw()
        assert next(parts) == worker.parts[0]
        registry, known = running.registry, running.registry.get(worker.url)
        for _ in range(2):
            running.loop.call_soon_threadsafe(registry.probed, known, False, 0.0)
        assert b"broke off" in b"".join(parts)


def test_a_burst_is_spread_and_every_request_is_answered_once(cluster):
    running, workers = cluster(3, dispatch_method="shortest_queue")
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        answers = list(
            pool.map(
                lambda n: httpx.post(running.url + "/generate", json=BODY | {"seed": n}, timeout=30),
                range(60),
            )
        )
    assert {answer.status_code for answer in answers} == {200}
    seen = sorted(body["seed"] for worker in workers for body in worker.seen)
    assert seen == list(range(60)) and all(len(worker.seen) >= 10 for worker in workers)
    running.wait_for(lambda: quiet(running))


def test_models_are_told_apart(start):
    workers = [start(MockWorker, ("a", "both")), start(MockWorker, ("b", "both"))]
    running = start(RunningController, workers=[worker.url for worker in workers])
    running.wait_for(lambda: len(running.registry) == 2)
    names = [entry["id"] for entry in httpx.get(running.url + "/v1/models").json()["data"]]
    assert names == ["a", "b", "both"]
    for model, worker in zip("ab", workers):
        answer = httpx.post(running.url + "/v1/completions", json=BODY | {"model": model})
        assert answer.json()["from"] == worker.url
    answer = httpx.post(running.url + "/v1/completions", json=BODY | {"model": "c"})
    assert answer.status_code == 404 and answer.json()["error"]["code"] == "model_not_found"


def test_ollamas_clients_find_the_models(start):
    worker = start(MockWorker, ("a", "b"))
    running = start(RunningController, workers=[worker.url])
    running.wait_for(lambda: len(running.registry) == 1)
    for path in ("tags", "ps"):
        models = httpx.get(running.url + f"/api/{path}").json()["models"]
        assert [model["name"] for model in models] == [model["model"] for model in models] == ["a", "b"]
        assert len({model["digest"] for model in models}) == 2 and models[0]["modified_at"].endswith("Z")
    assert httpx.get(running.url + "/api/version").json()["version"].count(".") == 2


def test_keys_of_the_controller_are_not_the_workers(cluster):
    running, (worker,) = cluster(1, api_key=["secret"], worker_api_key="inner")
    assert httpx.post(running.url + "/v1/completions", json=BODY).status_code == 401
    answer = httpx.post(
        running.url + "/v1/completions", json=BODY, headers={"authorization": "Bearer secret"}
    )
    assert answer.status_code == 200 and worker.headers[-1]["authorization"] == "Bearer inner"


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b'{"model": "m"'])
def test_a_body_that_is_no_object_reaches_nobody(cluster, body):
    running, (worker,) = cluster(1)
    answer = httpx.post(
        running.url + "/v1/completions", content=body, headers={"content-type": "application/json"}
    )
    assert answer.status_code == 400 and "message" in answer.json()["error"] and worker.seen == []
