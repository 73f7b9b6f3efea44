"""What workers and FastChat's clients say to a real controller."""

import json
import time

import httpx
import pytest

from lightllm.cluster.signing import HEADER, sign
from lightllm.cluster.worker import State

from cluster.conftest import MockWorker, RunningController  # isort: skip

SECRET = "a secret of sixteen"


@pytest.fixture
def secret_file(tmp_path):
    path = tmp_path / "secret"
    path.write_text(SECRET)
    return str(path)


def registration(url: str, **more) -> dict:
    status = {"model_names": ["m"], "speed": 1, "queue_length": 0}
    return {"worker_name": url, "check_heart_beat": True, "worker_status": status, **more}


def post(running, path: str, values: dict, secret: str | None = None, signature: str = "") -> httpx.Response:
    body = json.dumps(values).encode()
    if secret is not None:
        signature = sign(secret.encode(), "POST", path, body, time.time())
    headers = {"content-type": "application/json"} | ({HEADER: signature} if signature else {})
    return httpx.post(running.url + path, content=body, headers=headers)


def test_a_worker_registers_beats_serves_and_leaves(start):
    running, worker = start(RunningController), start(MockWorker)
    assert post(running, "/receive_heart_beat", {"worker_name": worker.url}).json() == {"exist": False}
    assert post(running, "/register_worker", registration(worker.url)).status_code == 200
    assert post(running, "/receive_heart_beat", {"worker_name": worker.url, "queue_length": 3}).json() == {
        "exist": True
    }
    assert post(running, "/list_models", {}).json() == {"models": ["m"]}
    assert post(running, "/worker_get_status", {}).json() == {
        "model_names": ["m"],
        "speed": 1.0,
        "queue_length": 3,
    }
    assert post(running, "/get_worker_address", {"model": "m"}).json() == {"address": worker.url}
    assert post(running, "/get_worker_address", {"model": "other"}).json() == {"address": ""}
    assert httpx.post(running.url + "/worker_generate", json={"model": "m"}).json()["from"] == worker.url
    assert post(running, "/deregister_worker", {"worker_name": worker.url}).status_code == 200
    assert post(running, "/list_models", {}).json() == {"models": []}
    assert httpx.get(running.url + "/test_connection").text == "success"


def test_clients_requests_go_to_the_server_behind_a_worker(start):
    running, worker = start(RunningController), start(MockWorker)
    post(
        running,
        "/register_worker",
        registration("http://127.0.0.1:1", server_url=worker.url, kind="lightllm"),
    )
    assert post(running, "/get_worker_address", {"model": "m"}).json() == {"address": "http://127.0.0.1:1"}
    assert httpx.post(running.url + "/v1/completions", json={"model": "m"}).json()["from"] == worker.url


def test_requests_that_go_past_the_controller_count_until_their_load_is_told(start):
    running = start(RunningController)
    for port in (1, 2):
        post(running, "/register_worker", registration(f"http://127.0.0.1:{port}"))
    given = [post(running, "/get_worker_address", {"model": "m"}).json()["address"] for _ in range(6)]
    assert {given.count(f"http://127.0.0.1:{port}") for port in (1, 2)} == {3}


def test_without_the_secret_nobody_registers(start, secret_file):
    running = start(RunningController, cluster_secret_file=secret_file)
    values = registration("http://127.0.0.1:1")
    for path in ("/register_worker", "/receive_heart_beat", "/deregister_worker"):
        assert post(running, path, values).status_code == 401
        assert post(running, path, values, secret="another secret, also long").status_code == 401
    assert len(running.registry) == 0
    assert post(running, "/register_worker", values, secret=SECRET).status_code == 200


def test_a_registration_cannot_be_replayed(start, secret_file):
    running = start(RunningController, cluster_secret_file=secret_file)
    values = registration("http://127.0.0.1:1")
    signature = sign(SECRET.encode(), "POST", "/register_worker", json.dumps(values).encode(), time.time())
    assert post(running, "/register_worker", values, signature=signature).status_code == 200
    running.loop.call_soon_threadsafe(running.registry.remove, "http://127.0.0.1:1")
    assert post(running, "/register_worker", values, signature=signature).status_code == 401
    running.wait_for(lambda: len(running.registry) == 0)


@pytest.mark.parametrize("field", ["worker_name", "server_url"])
def test_a_foreign_url_is_no_worker(start, field):
    running = start(RunningController)
    values = registration("http://127.0.0.1:1") | {field: "http://169.254.169.254/latest/meta-data"}
    answer = post(running, "/register_worker", values)
    assert answer.status_code == 403 and "not allowed" in answer.text and len(running.registry) == 0


@pytest.mark.parametrize(
    "wrong",
    [{"worker_status": {"model_names": []}}, {"worker_status": {"model_names": "m"}}, {"worker_status": {"model_names": ["m"], "speed": 0}},
     {"worker_status": {"model_names": ["m"], "speed": "fast"}}, {"worker_status": {}}, {"capacity": -1}, {"worker_name": 7}, {"labels": []},
     {"worker_status": None}],
)  # fmt: skip
def test_a_registration_that_makes_no_sense_is_refused(start, wrong):
    running = start(RunningController)
    answer = post(running, "/register_worker", registration("http://127.0.0.1:1") | wrong)
    assert 400 <= answer.status_code < 500 and len(running.registry) == 0


@pytest.mark.parametrize("wrong", [{"running": -1}, {"running": 1, "kv_use": 2.0}, {"running": "many"}])
def test_a_beat_that_makes_no_sense_is_refused_and_changes_nothing(start, wrong):
    running = start(RunningController)
    post(running, "/register_worker", registration("http://127.0.0.1:1"))
    answer = post(running, "/receive_heart_beat", {"worker_name": "http://127.0.0.1:1", **wrong})
    assert 400 <= answer.status_code < 500
    assert running.registry.get("http://127.0.0.1:1").requests == 0


def test_a_worker_that_was_started_again_registers_when_it_beats(start):
    running = start(RunningController)
    url = "http://127.0.0.1:1"
    post(running, "/register_worker", registration(url, worker_id="one"))
    beat = {"worker_name": url, "running": 0, "worker_id": "two"}
    assert post(running, "/receive_heart_beat", beat).json() == {"exist": False}
    post(running, "/register_worker", registration(url, worker_id="two"))
    assert post(running, "/receive_heart_beat", beat).json() == {"exist": True}


def test_operators_drain_and_remove_and_others_do_not(cluster):
    running, (first, second) = cluster(2, admin_api_key=["admin"])
    admin = {"authorization": "Bearer admin"}
    params = {"url": first.url}
    assert httpx.post(running.url + "/workers/drain", params=params).status_code == 403
    shown = httpx.post(running.url + "/workers/drain", params=params, headers=admin).json()["workers"]
    assert {entry["url"]: entry["state"] for entry in shown} == {first.url: "draining", second.url: "ready"}
    for _ in range(4):
        assert httpx.post(running.url + "/v1/completions", json={"model": "m"}).json()["from"] == second.url
    httpx.post(running.url + "/workers/undrain", params=params, headers=admin)
    assert running.registry.get(first.url).state is State.READY
    httpx.delete(running.url + "/workers", params={"url": second.url}, headers=admin)
    assert [worker.url for worker in running.registry if worker.url == second.url] in ([], [second.url])
    assert (
        httpx.post(running.url + "/workers/drain", params={"url": "http://nobody"}, headers=admin).status_code
        == 404
    )
    assert httpx.post(running.url + "/workers/drain", headers=admin).status_code == 400


def test_health_says_whether_requests_can_be_served_and_metrics_what_was(cluster, start):
    assert httpx.get(start(RunningController).url + "/health").status_code == 503
    running, (worker,) = cluster(1)
    assert httpx.get(running.url + "/health").status_code == 200
    httpx.post(running.url + "/v1/completions", json={"model": "m"})
    text = httpx.get(running.url + "/metrics").text
    assert f'lightllm_controller_requests_total{{status="200",worker="{worker.url}"}} 1.0' in text
    assert 'lightllm_controller_workers{state="ready"} 1.0' in text
    assert "lightllm_controller_first_byte_seconds_count 1.0" in text


def test_a_worker_that_stops_answering_is_out_and_back_when_it_answers(cluster):
    running, (worker,) = cluster(1)
    known = running.registry.get(worker.url)
    worker.healthy = False
    running.wait_for(lambda: known.state is State.OUT)
    worker.healthy = True
    running.wait_for(lambda: known.state is State.READY)


def test_fastchats_clients_get_errors_in_its_shape(start):
    running = start(RunningController)
    post(running, "/register_worker", registration("http://127.0.0.1:1"))
    for model, code in (("other", 40301), ("m", 50005)):
        answer = post(running, "/worker_generate_stream", {"model": model, "prompt": "hi"})
        assert answer.status_code == 200 and answer.content.endswith(b"\0")
        assert json.loads(answer.content[:-1])["error_code"] == code
        answer = post(running, "/worker_generate", {"model": model, "prompt": "hi"})
        assert answer.status_code == 200 and answer.json()["error_code"] == code
