"""A process that hangs: /health says so and names it; the Supervisor ends it, with its stacks in the log, and starts another.
The streams that it kept waiting go on."""

import re
import time

import httpx
import psutil
import pytest
from support.metrics import samples
from support.model_folder import make_model_folder
from support.server import LightLLMServer
from support.watched_streams import finish, start_streams, tokens_of, wait_until

ROUND_TIMEOUT = 10.0
HEALTH_SECONDS = 10.0
OBSERVERS = ("metrics", "health")


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = make_model_folder(tmp_path_factory.mktemp("model") / "tiny")
    options = ["--mock_backend", "step_ms=20", "--round_timeout", str(ROUND_TIMEOUT), "--max_restarts", "9"]
    with LightLLMServer(["--model_dir", str(folder), "--httpserver_workers", "2", *options]) as server:
        yield server


def health(server: LightLLMServer) -> httpx.Response:
    return httpx.get(server.url + "/health", timeout=10)


def request(tokens: int) -> tuple[str, dict]:
    parameters = {"max_new_tokens": tokens, "ignore_eos": True, "return_details": True, "seed": 1}
    return "/generate_stream", {"inputs": "hello", "parameters": parameters}


def hang_and_watch(server: LightLLMServer, victim: str, streams: list, others: tuple[str, ...] = ()) -> None:
    """Told within `HEALTH_SECONDS` by the process that answers, ended within the limit, healthy again afterwards. others: that
    hang too."""
    process = server.child(victim)
    for name in (*others, victim):
        server.child(name).suspend()
    begin = time.monotonic()
    try:
        wait_until(lambda: health(server).status_code == 503, f"{victim} hangs, and /health does not know")
        assert time.monotonic() - begin < HEALTH_SECONDS + 2  # of asking
        assert (body := health(server).json())["status"] == "unhealthy"
        assert re.search(rf"\b{victim} has made no progress for \d+ s", body["reason"])
        states = {process["name"]: process["state"] for process in body["processes"]}
        assert states[victim] == "hanging" and states["http-0"] == "ready"
        assert ("the Health Server has not looked for" in body["reason"]) == ("health" in others)
        assert httpx.get(server.url + "/readiness").status_code == 503
        assert httpx.get(server.url + "/liveness").status_code == 200
        assert samples(httpx.get(server.url + "/metrics").text)["lightllm_ready"] == 0
        psutil.wait_procs([process], timeout=ROUND_TIMEOUT + 5 - (time.monotonic() - begin))
        assert not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    finally:
        if process.is_running():
            process.resume()
    for name in (*others, victim):
        server.wait_for(rf"E supervisor \| {name} failed: made no progress for \d+ s \(--round_timeout\)")
    wait_until(lambda: health(server).status_code == 200, "the server is not healthy again")
    finish(streams)


@pytest.mark.parametrize(
    "victim",
    [
        "backend-0",
        pytest.param("router", marks=pytest.mark.slow),
        pytest.param("detokenizer", marks=pytest.mark.slow),
    ],
)
def test_a_process_that_hangs_amid_streams_is_told_ended_and_replaced(server, victim):
    """With the backend those hang that only look on: the Http Servers judge by themselves then."""
    wait_until(lambda: health(server).status_code == 200, "the server is not healthy")
    undisturbed = start_streams(server.url, [request(60)])
    finish(undisturbed)
    streams = start_streams(server.url, [request(60)])
    wait_until(lambda: tokens_of(streams) > 5, "the stream does not begin")
    hang_and_watch(server, victim, streams, OBSERVERS if victim == "backend-0" else ())
    assert not any(one.differs(other) for one, other in zip(streams, undisturbed, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["router", "detokenizer", "backend-0"])
def test_an_idle_process_that_hangs_is_told_ended_and_replaced(server, victim):
    hang_and_watch(server, victim, [])
    streams = start_streams(server.url, [request(20)])
    finish(streams)
    assert not streams[0].error


@pytest.mark.slow
@pytest.mark.parametrize("victim", OBSERVERS)
def test_a_process_that_no_request_passes_hangs_amid_streams_and_nobody_notices(server, victim):
    undisturbed = start_streams(server.url, [request(900)])
    finish(undisturbed)
    process = server.child(victim)
    streams = start_streams(server.url, [request(900)])
    process.suspend()
    answers = []

    def replaced() -> bool:
        answers.append(health(server))
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE

    wait_until(replaced, f"{victim} goes on hanging", ROUND_TIMEOUT + 5)
    finish(streams)
    assert {answer.status_code for answer in answers} == {200}
    assert any(f"{victim} has made no progress" in answer.json()["reason"] for answer in answers)
    assert not streams[0].differs(undisturbed[0]) and streams[0].longest_pause < 5
    server.wait_for(rf"E supervisor \| {victim} failed: made no progress for \d+ s")
    wait_until(lambda: not health(server).json()["reason"], f"{victim} does not come back")


@pytest.mark.slow
def test_a_process_that_stands_still_for_a_while_is_left_alone(server):
    process = server.child("router")
    process.suspend()
    wait_until(lambda: health(server).status_code == 503, "/health does not know")
    process.resume()
    wait_until(lambda: health(server).status_code == 200, "the server is not healthy again")
    server.wait_for("router makes progress again")
    assert process.is_running()


@pytest.mark.slow
def test_a_process_that_hangs_is_ended_with_its_stacks_in_the_log(tmp_path):
    """It runs, and does nothing: a round of the mock backend that sleeps for a minute."""
    folder = make_model_folder(tmp_path / "tiny")
    options = ["--mock_backend", "step_ms=60000", "--round_timeout", "2", "--max_restarts", "0"]
    server = LightLLMServer(["--model_dir", str(folder), *options])
    try:
        server.wait_ready()
        streams = start_streams(server.url, [request(20)])
        assert server.wait(30) == 1
        server.wait_for(r"lightllm: error: backend-0 failed: made no progress for \d+ s \(--round_timeout\)")
        assert "Current thread" in server.log and "mock.py" in server.log
        finish(streams)
        assert streams[0].error
        server.check_nothing_left()
    finally:
        server.abandon()


@pytest.mark.slow
def test_requests_without_tokens_for_too_long_make_the_server_unhealthy(tmp_path):
    folder = make_model_folder(tmp_path / "tiny")
    options = ["--mock_backend", "step_ms=8000", "--health_timeout", "2"]
    with LightLLMServer(["--model_dir", str(folder), *options]) as server:
        streams = start_streams(server.url, [request(2)])
        wait_until(lambda: health(server).status_code == 503, "/health does not know")
        assert health(server).json()["reason"].startswith("requests run, and no token has come for ")
        server.wait_for("E health | requests run, and no token has come for")
        finish(streams)
        assert not streams[0].error
        wait_until(lambda: health(server).status_code == 200, "the server is not healthy again")


@pytest.mark.slow
def test_a_long_round_and_an_idle_server_are_healthy(tmp_path):
    """A round of a large prompt may take nearly as long as the limit; idleness counts for nothing."""
    folder = make_model_folder(tmp_path / "tiny")
    options = ["--mock_backend", "step_ms=1500", "--round_timeout", "3"]
    with LightLLMServer(["--model_dir", str(folder), *options]) as server:
        seen = []
        begin = time.monotonic()
        while time.monotonic() - begin < 3.5:  # idle for longer than the limit
            seen.append(health(server).status_code)
            time.sleep(0.1)
        streams = start_streams(server.url, [request(3)])
        while streams[0].is_alive():
            seen.append(health(server).status_code)
            time.sleep(0.1)
        finish(streams)
        assert not streams[0].error and set(seen) == {200}
        assert "no progress" not in server.log
