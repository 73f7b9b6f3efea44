"""A process that hangs while requests run: /health says so, the log names it, and all goes on when it does."""

import threading
import time
from collections.abc import Callable

import httpx
import pytest
from support.model_folder import make_model_folder
from support.server import LightLLMServer

LIMIT = 3.0
"""Seconds until a process counts as hanging: twice --round_timeout."""


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = make_model_folder(tmp_path_factory.mktemp("model") / "tiny")
    options = ["--mock_backend", "step_ms=20", "--round_timeout", str(LIMIT / 2)]
    with LightLLMServer(["--model_dir", str(folder), *options]) as server:
        yield server


def health(server: LightLLMServer) -> httpx.Response:
    return httpx.get(server.url + "/health", timeout=10)


def wait_for(condition: Callable[[], object], seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "the condition did not come true"
        time.sleep(0.05)


class Request(threading.Thread):
    """A request whose answer takes a while."""

    def __init__(self, server: LightLLMServer, tokens: int = 50) -> None:
        super().__init__(daemon=True)
        self.status = 0
        self._url, self._tokens = server.url + "/generate", tokens
        self.start()

    def run(self) -> None:
        body = {"inputs": "hello", "parameters": {"max_new_tokens": self._tokens, "ignore_eos": True}}
        self.status = httpx.post(self._url, json=body, timeout=60).status_code

    def finished(self) -> int:
        self.join(60)
        return self.status


@pytest.mark.parametrize("victim", ["backend-0", "detokenizer", "router"])
def test_a_process_that_hangs_is_told_and_named_and_recovers(server, victim):
    """It is stopped while nothing runs, so that it is stuck from the first round on."""
    wait_for(lambda: health(server).status_code == 200)
    process = server.child(victim)
    process.suspend()
    try:
        begin = time.monotonic()
        request = Request(server)
        wait_for(lambda: health(server).status_code == 503)
        assert time.monotonic() - begin > LIMIT / 2
        assert health(server).json()["status"].startswith(f"{victim} has made no progress for ")
        assert httpx.get(server.url + "/readiness").status_code == 503
        assert httpx.get(server.url + "/liveness").status_code == 200
        assert "lightllm_ready 0.0" in httpx.get(server.url + "/metrics").text
        server.wait_for(rf"E supervisor \| {victim} has made no progress for \d s: /health answers 503")
    finally:
        process.resume()
    assert request.finished() == 200
    wait_for(lambda: health(server).status_code == 200)
    server.wait_for(rf"{victim} makes progress again, after \d+ s")


def test_a_backend_that_stops_amid_a_stream_is_told(server):
    wait_for(lambda: health(server).status_code == 200)
    request = Request(server, 200)
    wait_for(lambda: "lightllm_batch_current_size 1.0" in httpx.get(server.url + "/metrics").text)
    process = server.child("backend-0")
    process.suspend()
    try:
        wait_for(lambda: health(server).status_code == 503)
    finally:
        process.resume()
    assert request.finished() == 200


def test_a_long_round_and_an_idle_server_are_healthy(tmp_path):
    """A round of a large prompt may take nearly as long as the limit; idleness counts for nothing."""
    folder = make_model_folder(tmp_path / "tiny")
    options = ["--mock_backend", "step_ms=1500", "--round_timeout", "1.5"]
    with LightLLMServer(["--model_dir", str(folder), *options]) as server:
        seen = []
        begin = time.monotonic()
        while time.monotonic() - begin < 3.5:  # idle for longer than the limit
            seen.append(health(server).status_code)
            time.sleep(0.1)
        request = Request(server, 3)
        while request.is_alive():
            seen.append(health(server).status_code)
            time.sleep(0.1)
        assert request.finished() == 200
        assert set(seen) == {200}
        assert "no progress" not in server.log
