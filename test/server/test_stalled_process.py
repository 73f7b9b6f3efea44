"""A process that hangs: /health says so and names it; the Supervisor ends it, with its stacks in the log, and starts another.
The streams that it kept waiting go on."""

import time

import httpx
import psutil
import pytest
from support.model_folder import make_model_folder
from support.server import LightLLMServer
from support.watched_streams import finish, start_streams, tokens_of, wait_until

ROUND_TIMEOUT = 10.0
HEALTH_SECONDS = 10.0


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


def hang_and_watch(server: LightLLMServer, victim: str, streams: list) -> None:
    """Told within `HEALTH_SECONDS` by the process that answers, ended within the limit, healthy again afterwards."""
    process = server.child(victim)
    process.suspend()
    begin = time.monotonic()
    try:
        wait_until(lambda: health(server).status_code == 503, f"{victim} hangs, and /health does not know")
        assert time.monotonic() - begin < HEALTH_SECONDS + 2  # of asking
        assert health(server).json()["status"].startswith(f"{victim} has made no progress for ")
        assert httpx.get(server.url + "/readiness").status_code == 503
        assert httpx.get(server.url + "/liveness").status_code == 200
        assert "lightllm_ready 0.0" in httpx.get(server.url + "/metrics").text
        psutil.wait_procs([process], timeout=ROUND_TIMEOUT + 5 - (time.monotonic() - begin))
        assert not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    finally:
        if process.is_running():
            process.resume()
    server.wait_for(rf"E supervisor \| {victim} failed: made no progress for \d+ s \(--round_timeout\)")
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
    wait_until(lambda: health(server).status_code == 200, "the server is not healthy")
    undisturbed = start_streams(server.url, [request(60)])
    finish(undisturbed)
    streams = start_streams(server.url, [request(60)])
    wait_until(lambda: tokens_of(streams) > 5, "the stream does not begin")
    hang_and_watch(server, victim, streams)
    assert not any(one.differs(other) for one, other in zip(streams, undisturbed, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["router", "detokenizer", "backend-0"])
def test_an_idle_process_that_hangs_is_told_ended_and_replaced(server, victim):
    hang_and_watch(server, victim, [])
    streams = start_streams(server.url, [request(20)])
    finish(streams)
    assert not streams[0].error


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
