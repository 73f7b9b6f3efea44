"""A controller that is the worker of another one."""

import httpx
from cluster.conftest import MockWorker, RunningController

from lightllm.cluster import agent
from lightllm.cluster.worker import Description, State

BODY = {"model": "a", "prompt": "hello", "max_tokens": 4}


def test_the_upper_controller_serves_all_models_below_and_learns_of_new_ones(start, tmp_path, monkeypatch):
    monkeypatch.setattr(agent, "INTERVAL", 0.1)
    secret, other = tmp_path / "secret", tmp_path / "other"
    secret.write_text("a secret of sixteen")
    other.write_text("another of sixteen")
    upper = start(RunningController, cluster_secret_file=str(secret))
    files = {"cluster_secret_file": str(other), "controller_secret_file": str(secret)}
    lower = start(
        RunningController,
        **files,
        controller_address=[upper.url],
        workers=[(one := start(MockWorker, ("a",))).url],
    )
    upper.wait_for(lambda: len(upper.registry) == 1)
    (below,) = upper.registry
    assert (below.url, below.description.kind, below.description.model_names) == (
        lower.url,
        "controller",
        ("a",),
    )
    assert httpx.post(upper.url + "/v1/completions", json=BODY).json()["from"] == one.url
    stream = httpx.post(upper.url + "/v1/completions", json=BODY | {"stream": True})
    assert stream.content == b"".join(one.parts)
    two = start(MockWorker, ("b",))
    described = Description(two.url, ("b",), kind="openai", heartbeats=False)
    lower.loop.call_soon_threadsafe(lower.registry.register, described, lower.loop.time())
    upper.wait_for(lambda: set(below.description.model_names) == {"a", "b"})
    assert httpx.post(upper.url + "/v1/completions", json=BODY | {"model": "b"}).json()["from"] == two.url


def test_the_upper_one_knows_the_load_below_and_that_it_has_gone(start, monkeypatch):
    monkeypatch.setattr(agent, "INTERVAL", 0.1)
    upper, worker = start(RunningController), start(MockWorker, ("a",))
    lower = RunningController(controller_address=[upper.url], workers=[worker.url])
    try:
        upper.wait_for(lambda: len(upper.registry) == 1)
        (below,) = upper.registry
        (known,) = lower.registry
        lower.loop.call_soon_threadsafe(setattr, known, "foreign", 5)
        upper.wait_for(lambda: below.foreign == 5 and below.state is State.READY)
    finally:
        lower.end()
    upper.wait_for(lambda: len(upper.registry) == 0)


def test_without_workers_it_does_not_register(start, monkeypatch):
    monkeypatch.setattr(agent, "INTERVAL", 0.05)
    upper = start(RunningController)
    lower = start(RunningController, controller_address=[upper.url])
    worker = start(MockWorker, ("a",))
    assert httpx.get(lower.url + "/health").status_code == 503 and len(upper.registry) == 0
    registration = {
        "worker_name": worker.url,
        "check_heart_beat": True,
        "worker_status": {"model_names": ["a"]},
        "kind": "openai",
    }
    assert httpx.post(lower.url + "/register_worker", json=registration).status_code == 200
    upper.wait_for(lambda: len(upper.registry) == 1)
    assert httpx.post(upper.url + "/v1/completions", json=BODY).json()["from"] == worker.url
