"""Processes that end together, or amid the restart of another one, or while a client wants something else: every stream goes on
all the same, token for token."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import httpx
import psutil
import pytest
from safetensors.torch import load_file, save_file
from support.checkpoints import make_checkpoint
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

ENGINE = ("router", "backend-0", "detokenizer")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LightLLMServer]:
    folder = make_model_folder(tmp_path_factory.mktemp("model") / "tiny", context_length=2048)
    options = [
        "--mock_backend",
        "step_ms=10,init_ms=800",
        "--httpserver_workers",
        "2",
        "--running_max_req_size",
        "6",
    ]
    options += ["--chunked_prefill_size", "16", "--max_total_token_num", "9000", "--max_restarts", "1000"]
    with LightLLMServer(["--model_dir", str(folder), *options]) as server:
        yield server


def requests(tokens: int = 300) -> list[tuple[str, dict]]:
    native = {"max_new_tokens": tokens, "ignore_eos": True, "return_details": True}
    openai = {"model": "tiny", "max_tokens": tokens, "ignore_eos": True, "stream": True}
    return [
        ("/generate_stream", {"inputs": "hello " * 60, "parameters": native | {"seed": 7}}),
        ("/generate_stream", {"inputs": "stop", "parameters": native | {"seed": 8, "stop_sequences": ["e"], "min_new_tokens": tokens - 20}}),
        ("/v1/completions", openai | {"prompt": "several", "n": 3, "seed": 9}),
        ("/v1/completions", openai | {"prompt": "the best", "n": 2, "best_of": 2, "seed": 19}),
        ("/v1/completions", openai | {"prompt": "world " * 90, "seed": 10, "logprobs": 2, "echo": True}),
        ("/v1/completions", openai | {"prompt": ["one", "two words"], "seed": 12}),
    ]  # fmt: skip


def process(server: LightLLMServer, name: str) -> psutil.Process:
    """As soon as it runs."""
    found: list[psutil.Process] = []

    def runs() -> bool:
        with suppress(AssertionError, psutil.NoSuchProcess):
            found.append(server.child(name))
        return bool(found)

    wait_until(runs, f"{name} does not run")
    return found[0]


def kill(server: LightLLMServer, *names: str) -> None:
    """All at once: none of them runs on while another one is killed."""
    processes = [process(server, name) for name in names]
    for one in processes:
        one.suspend()
    for one in processes:
        one.kill()
    psutil.wait_procs(processes, timeout=10)


def healthy(server: LightLLMServer) -> bool:
    with suppress(httpx.HTTPError):
        return httpx.get(server.url + "/health", timeout=5).status_code == 200
    return False


def kill_twice(server: LightLLMServer) -> None:
    kill(server, *ENGINE)
    wait_until(lambda: "backend-0 loading" in server.log[-2000:], "nothing is started again")
    kill(server, *ENGINE)


def kill_amid(server: LightLLMServer, name: str, times: int = 2, seconds: float = 0.0) -> None:
    """The process, and then each that takes its place, `seconds` after it has begun to run."""
    for _ in range(1 + times):
        kill(server, name)
        last = process(server, name)
        time.sleep(seconds)
        assert last.is_running()


def loading(server: LightLLMServer) -> None:
    """The backend is killed, and the next one loads its model."""
    seen = server.log.count("backend-0 loading — preparing the mock backend")
    kill(server, "backend-0")
    wait_until(
        lambda: server.log.count("backend-0 loading — preparing the mock backend") > seen,
        "no model is loaded",
    )


def stop_amid_the_detokenizers_restart(server: LightLLMServer) -> None:
    """The Router learns of the other Detokenizer before it can have noticed the end of the one before."""
    router = process(server, "router")
    router.suspend()
    seen = server.log.count("detokenizer ready")
    kill(server, "detokenizer")
    wait_until(lambda: server.log.count("detokenizer ready") > seen, "no detokenizer")
    time.sleep(0.2)
    router.resume()


def stop_amid_the_routers_restart(server: LightLLMServer) -> None:
    """The backend is asked by two Routers before it can answer the first."""
    backend = process(server, "backend-0")
    backend.suspend()
    for _ in range(2):
        seen = server.log.count("router loading — waiting for the model backend")
        kill(server, "router")
        wait_until(
            lambda seen=seen: server.log.count("router loading — waiting for the model backend") > seen,  # type: ignore[misc]
            "no router",
        )
    time.sleep(0.3)
    backend.resume()


DISTURBANCES: dict[str, Callable[[LightLLMServer], None]] = {
    "all of the engine, twice": kill_twice,
    "router and detokenizer": lambda server: kill(server, "router", "detokenizer"),
    "router and backend": lambda server: kill(server, "router", "backend-0"),
    "detokenizer and backend": lambda server: kill(server, "detokenizer", "backend-0"),
    "each router before it is ready": lambda server: kill_amid(server, "router", seconds=0.3),
    "each detokenizer at once": lambda server: kill_amid(server, "detokenizer"),
    "each backend while it loads": lambda server: kill_amid(server, "backend-0", seconds=0.5),
    "router while the backend loads": lambda server: (loading(server), kill(server, "router"))[0],
    "detokenizer while the backend loads": lambda server: (loading(server), kill(server, "detokenizer"))[0],
    "a backend that stands still while routers come and go": stop_amid_the_routers_restart,
    "a router that stands still while the detokenizer is another": stop_amid_the_detokenizers_restart,
}


@pytest.mark.slow
@pytest.mark.parametrize("disturbance", DISTURBANCES)
def test_streams_go_on_after(server: LightLLMServer, disturbance: str) -> None:
    wait_until(lambda: healthy(server), "the server is not healthy")
    undisturbed = start_streams(server.url, requests())
    finish(undisturbed)
    assert not [stream.error for stream in undisturbed if stream.error]
    streams = start_streams(server.url, requests())
    wait_until(lambda: tokens_of(streams) > 100, "no stream begins")
    DISTURBANCES[disturbance](server)
    finish(streams)
    assert [one.differs(other) for one, other in zip(streams, undisturbed, strict=True)] == [""] * len(
        streams
    )
    clean(server)


def clean(server: LightLLMServer) -> None:
    wait_until(lambda: healthy(server), "the server is not healthy")
    wait_until(lambda: metric(server, "lightllm_slots_used") == 0, "slots are in use after the last stream")
    assert metric(server, "lightllm_batch_current_size") == metric(server, "lightllm_queue_size") == 0


@pytest.mark.slow
@pytest.mark.parametrize("first", ["http-1", "router"])
def test_an_http_server_and_the_router_that_end_together_lose_the_streams_of_one_worker(
    server: LightLLMServer, first: str
) -> None:
    """In either order, the second one while the first one is not there again: the slots of the lost streams are free."""
    wait_until(lambda: healthy(server), "the server is not healthy")
    undisturbed = start_streams(server.url, requests())
    finish(undisturbed)
    streams = start_streams(server.url, requests() * 2)
    wait_until(lambda: all(stream.local_port for stream in streams), "not all are connected")
    wait_until(lambda: tokens_of(streams) > 100, "no stream begins")
    lost = ports_of(server.child("http-1"))
    assert lost
    kill(server, *sorted(["http-1", "router"], key=lambda name: name != first))
    finish(streams)
    for number, stream in enumerate(streams):
        if stream.local_port not in lost:
            assert not stream.differs(undisturbed[number % len(undisturbed)])
    assert any(not stream.error for stream in streams) and any(stream.error for stream in streams)
    clean(server)


@pytest.mark.slow
def test_what_clients_want_during_the_pause_is_done(server: LightLLMServer) -> None:
    """While there is no Router and no Model Backend: a time limit is kept, a client leaves, another is aborted, caches are
    flushed, new requests come."""
    wait_until(lambda: healthy(server), "the server is not healthy")
    endless = {"max_new_tokens": 1500, "ignore_eos": True, "return_details": True}

    def stream(parameters: dict, **headers: str) -> WatchedStream:
        return WatchedStream(
            server.url, "/generate_stream", {"inputs": "x", "parameters": endless | parameters}, headers
        )

    timed, aborted, left = stream({"timeout": 3.0}), stream({}, **{"X-Request-Id": "mine"}), stream({})
    wait_until(lambda: all(tokens_of([one]) > 20 for one in (timed, aborted, left)), "no stream begins")
    begin = time.monotonic()
    loading(server)
    kill(server, "router")
    left.leave()
    assert (
        httpx.post(server.url + "/abort_request", json={"request_id": "mine"}, timeout=10).status_code == 200
    )
    flushed = httpx.post(server.url + "/flush_cache", timeout=30)
    assert flushed.status_code in (200, 503)
    later = start_streams(server.url, requests(20))
    finish([timed, aborted, *later])
    assert "longer than its time limit" in timed.error
    assert timed.ended - begin < 6.0 + timed.longest_pause
    assert aborted.told[-1] == "abort"
    assert all(not one.error or one.error.startswith("503") for one in later)
    clean(server)


@pytest.mark.slow
def test_a_server_that_is_told_to_stop_amid_a_restart_finishes_what_was_accepted(tmp_path: Path) -> None:
    """The new Router is ready and knows of nothing, because the Http Server stands still, when the Supervisor looks."""
    folder = make_model_folder(tmp_path / "tiny", context_length=2048)
    options = ["--model_dir", str(folder), "--mock_backend", "step_ms=10"]
    with LightLLMServer(options) as server:
        streams = start_streams(server.url, requests())
        wait_until(lambda: tokens_of(streams) > 100, "no stream begins")
        worker = server.child("http-0")
        worker.suspend()
        kill(server, "router")
        server.wait_for("(?s)(router ready.*){2}", 60)
        server.send(signal.SIGTERM)
        server.wait_for("draining")
        time.sleep(1.0)
        worker.resume()
        finish(streams)
        assert [stream.error for stream in streams] == [""] * len(streams)
        assert server.wait(60) == 0


@pytest.mark.slow
def test_numbers_that_are_none_end_their_request_alone_after_a_restart_too(tmp_path: Path) -> None:
    path = make_checkpoint(tmp_path / "model")
    (file,) = path.glob("*.safetensors")
    tensors = load_file(file)
    tensors["model.embed_tokens.weight"][5] = math.nan
    save_file(tensors, file, {"format": "pt"})
    options = [
        "--model_dir",
        str(path),
        "--device",
        "cpu",
        "--data_type",
        "fp32",
        "--max_total_token_num",
        "4000",
    ]
    parameters = {
        "max_new_tokens": 400,
        "do_sample": False,
        "logit_bias": {"5": -100},
        "ignore_eos": True,
        "return_details": True,
    }
    good = ("/generate_stream", {"inputs": [7, 8, 9], "parameters": parameters})
    with LightLLMServer(options) as server:
        undisturbed = start_streams(server.url, [good])
        finish(undisturbed)
        streams = start_streams(server.url, [good])
        wait_until(lambda: tokens_of(streams) > 20, "the stream does not begin")
        kill(server, "backend-0")
        body = {"inputs": [7, 5, 9], "parameters": parameters}
        server.wait_for("backend: ready again", 120)
        wait_until(lambda: healthy(server), "the server is not healthy")
        for _ in range(2):  # the second one finds nothing of it in the cache of prefixes
            bad = httpx.post(server.url + "/generate", json=body, timeout=60)
            assert bad.status_code == 500, bad.text
        finish(streams)
        assert not streams[0].differs(undisturbed[0])
        assert metric(server, "lightllm_router_not_finite_total") == 2
        assert metric(server, "lightllm_slots_used") == 0
