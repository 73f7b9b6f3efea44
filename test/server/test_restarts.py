"""Processes of a server are killed while streams run: they are started again, and every stream goes on, token for token.
Only the streams of an Http Server that is killed itself end with its connections."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from support.model_folder import make_model_folder
from support.server import LightLLMServer
from support.watched_streams import (
    WatchedStream,
    finish,
    metric,
    ports_of,
    start_streams,
    tokens_of,
    wait_until,
)

WORKERS = 2
PAUSE = 40.0
"""Seconds within which streams go on after a kill, where other work delays the start of three processes."""


def requests(tokens: int) -> list[tuple[str, dict[str, Any]]]:
    """All seeded (the mock backend draws greedy tokens too); with a stop string, with log-probabilities, of several choices, with prompts of several chunks."""
    native = {"max_new_tokens": tokens, "ignore_eos": True, "return_details": True}
    openai = {"model": "tiny", "max_tokens": tokens, "ignore_eos": True, "stream": True}
    return [
        ("/generate_stream", {"inputs": "greedy", "parameters": native | {"do_sample": False, "seed": 6}}),
        ("/generate_stream", {"inputs": "hello " * 60, "parameters": native | {"seed": 7}}),
        ("/generate_stream", {"inputs": "stop", "parameters": native | {"seed": 8, "stop_sequences": ["never to be"]}}),
        ("/v1/completions", openai | {"prompt": "several", "n": 2, "seed": 9}),
        ("/v1/completions", openai | {"prompt": "world " * 40, "seed": 10, "logprobs": 2}),
        ("/v1/completions", openai | {"prompt": "more", "seed": 11, "temperature": 0.7}),
    ]  # fmt: skip


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make_model_folder(tmp_path_factory.mktemp("model") / "tiny"))


@pytest.fixture(scope="module")
def server(model_dir: str) -> Iterator[LightLLMServer]:
    options = [
        "--mock_backend",
        "step_ms=10",
        "--httpserver_workers",
        str(WORKERS),
        "--running_max_req_size",
        "5",
    ]
    options += ["--chunked_prefill_size", "16", "--max_total_token_num", "8000", "--max_restarts", "20"]  # fmt: skip
    with LightLLMServer(["--model_dir", model_dir, *options]) as server:
        yield server


def kill(server: LightLLMServer, name: str) -> psutil.Process:
    process = server.child(name)
    process.kill()
    process.wait(10)
    return process


def goes_on(server: LightLLMServer, streams: list[WatchedStream], name: str, deaths: int) -> None:
    """The process has been started again, and streams have brought tokens since."""
    server.wait_for(
        rf"(?s)(E supervisor \| {name} was killed by SIGKILL: it is started again.*?){{{deaths}}}", 30
    )
    before = tokens_of(streams)
    wait_until(
        lambda: tokens_of(streams) > before + 30 or not any(stream.is_alive() for stream in streams),
        f"nothing goes on after the end of {name}",
    )


def test_streams_go_on_when_any_process_but_an_http_server_is_killed(server: LightLLMServer) -> None:
    undisturbed = start_streams(server.url, requests(400))
    finish(undisturbed)
    assert not [stream.error for stream in undisturbed if stream.error]

    streams = start_streams(server.url, requests(400))
    wait_until(lambda: tokens_of(streams) > 60, "no stream begins")
    for name in ("router", "detokenizer", "backend-0", "metrics", "health"):
        kill(server, name)
        goes_on(server, streams, name, 1)
    finish(streams)
    assert not any(one.differs(other) for one, other in zip(streams, undisturbed, strict=True))
    assert max(stream.longest_pause for stream in streams) < PAUSE
    wait_until(lambda: metric(server, "lightllm_slots_used") == 0, "slots are in use after the last stream")
    assert metric(server, "lightllm_batch_current_size") == metric(server, "lightllm_queue_size") == 0
    assert metric(server, "lightllm_router_restored_total") > 0


def test_what_clients_want_while_there_is_no_router_is_done_by_the_next_one(server: LightLLMServer) -> None:
    parameters = {"max_new_tokens": 900, "ignore_eos": True, "return_details": True}
    aborted, left = (
        WatchedStream(
            server.url, "/generate_stream", {"inputs": name, "parameters": parameters}, {"X-Request-Id": name}
        )
        for name in ("aborted", "left")
    )
    wait_until(lambda: tokens_of([aborted]) > 5 and tokens_of([left]) > 5, "no stream begins")
    aborts = metric(server, "lightllm_router_aborted_total")
    kill(server, "router")
    left.leave()
    assert httpx.post(server.url + "/abort_request", json={"request_id": "aborted"}).status_code == 200
    flushed = httpx.post(server.url + "/flush_cache", timeout=30)
    later = start_streams(server.url, requests(20))
    finish([aborted, *later])
    assert flushed.status_code == 200, flushed.text
    assert aborted.told[-1] == "abort" and len(aborted.told) < 900
    assert not any(stream.error for stream in later)
    wait_until(lambda: metric(server, "lightllm_slots_used") == 0, "those who left have slots")
    assert metric(server, "lightllm_router_aborted_total") > aborts


def test_an_http_server_that_is_killed_ends_its_own_streams_alone(server: LightLLMServer) -> None:
    undisturbed = start_streams(server.url, requests(200))
    finish(undisturbed)
    streams = start_streams(server.url, requests(200) * 3)  # so many that each worker has some
    wait_until(lambda: all(stream.local_port for stream in streams), "not all are connected")
    shares = [len(ports_of(server.child(f"http-{worker}"))) for worker in range(WORKERS)]
    assert abs(shares[0] - shares[1]) <= 4, shares  # each takes what the other has less
    lost = ports_of(server.child("http-1"))
    kill(server, "http-1")
    finish(streams)
    ended = [stream for stream in streams if stream.error]
    assert {stream.local_port for stream in ended} <= lost
    for number, stream in enumerate(streams):
        if not stream.error:
            assert not stream.differs(undisturbed[number % len(undisturbed)])
    wait_until(lambda: metric(server, "lightllm_slots_used") == 0, "the lost streams still have slots")
    server.wait_for("http-1 ready(?s:.*)http-1 ready", PAUSE)
    assert (
        httpx.post(
            server.url + "/generate",
            json={"inputs": "again", "parameters": {"max_new_tokens": 4}},
            timeout=30,
        ).status_code
        == 200
    )


@pytest.mark.slow
def test_a_process_that_ends_again_and_again_ends_the_server_with_its_name(
    model_dir: str, tmp_path: Path
) -> None:
    options = ["--model_dir", model_dir, "--mock_backend", "die_after=3", "--max_restarts", "1"]
    server = LightLLMServer(options)
    try:
        server.wait_ready()
        answer = httpx.post(server.url + "/generate", json={"inputs": "x", "parameters": {"max_new_tokens": 9}}, timeout=60)  # fmt: skip
        assert answer.status_code == 503
        assert server.wait(30) == 1
        assert re.search(r"lightllm: error: backend-0 failed: .* \(after 1 restarts within 300 s: --max_restarts\)", server.log)  # fmt: skip
        server.check_nothing_left()
    finally:
        server.abandon()
