"""64 clients read streams while processes are killed at random, or all in turn: no accepted request is lost or changed, but
those whose own Http Server died.

CHAOS_SECONDS: how long each server is disturbed (60); CHAOS_EVERY: seconds from one kill to the next (3). With more of them a
pause is what one kill takes, not two.
"""

from __future__ import annotations

import itertools
import math
import os
import random
import statistics
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest
from support.model_folder import make_model_folder
from support.server import LightLLMServer
from support.vision_models import random_images
from support.vision_server import VisionServer, vision_server
from support.watched_streams import WatchedStream, kill, metric, wait_until

pytestmark = pytest.mark.slow

SECONDS = float(os.environ.get("CHAOS_SECONDS", "60"))
CLIENTS = int(os.environ.get("CHAOS_CLIENTS", "64"))
EVERY = float(os.environ.get("CHAOS_EVERY", "3"))

STEP_MS = 50
"""Of a mock round: 64 clients read 1,300 tokens a second. With 10 their reading alone keeps two cores busy, and a pause says how
long a process that starts waits for one of them."""

KINDS = {"router", "detokenizer", "backend", "http", "metrics", "health"}


def requests(model: str) -> list[tuple[str, dict[str, Any]]]:
    sampling = {
        "ignore_eos": True,
        "temperature": 0.7,
        "top_p": 0.9,
    }  # few tokens: few near ties, which fp32 decides by luck
    native = sampling | {"max_new_tokens": 150, "return_details": True, "do_sample": True}
    openai = sampling | {"model": model, "max_tokens": 120, "stream": True}
    free = {"ignore_eos": False}
    return [
        ("/generate_stream", {"inputs": "count to", "parameters": native | {"do_sample": False, "seed": 1}}),
        ("/generate_stream", {"inputs": "why is the sky blue " * 9, "parameters": native | {"seed": 2}}),
        ("/generate_stream", {"inputs": "stop", "parameters": native | {"seed": 3, "stop_sequences": ["e"], "min_new_tokens": 60}}),
        ("/generate_stream", {"inputs": "a", "parameters": native | free | {"seed": 4, "regular_constraint": "[a-z ]{40,90}[.!]"}}),
        ("/v1/completions", openai | {"prompt": "several", "n": 2, "seed": 15}),
        ("/v1/completions", openai | {"prompt": "hello " * 30, "seed": 6, "logprobs": 2}),
        ("/v1/completions", openai | free | {"prompt": "x", "seed": 7, "guided_json": {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": False}}),
        ("/v1/completions", openai | {"prompt": "two", "seed": 8}),
    ]  # fmt: skip


def image_requests(served: VisionServer) -> list[tuple[str, dict[str, Any]]]:
    images = random_images(4)
    sampling = {"max_new_tokens": 120, "do_sample": True, "temperature": 0.7, "top_p": 0.9}
    return [
        ("/generate_stream", served.body(text, [images[n] for n in numbers], seed=21 + place, **sampling))
        for place, (text, numbers) in enumerate(
            [
                ("What is the quick {image} here, and {image}?", [0, 1]),
                ("{image} The lazy dog", [2]),
                ("Hello {image}{image} what?", [3, 0]),
            ]
        )
    ]


class Disturbed(NamedTuple):
    server: LightLLMServer
    kinds: set[str]
    """Of the processes that are killed."""
    requests: list[tuple[str, dict[str, Any]]]


class Clients:
    """Each sends one request after the other, and compares the answer with the undisturbed one."""

    def __init__(self, server: LightLLMServer, wanted: list[tuple[str, dict[str, Any]]]) -> None:
        self.outcomes: Counter[str] = Counter()
        self.problems: list[str] = []
        self.pauses: list[tuple[float, float]] = []
        """Of streams that were not lost: begin and end, `time.monotonic()`."""
        self.lost_ports: set[int] = set()
        """Of connections whose Http Server was killed."""
        self._url, self._wanted = server.url, wanted
        self._ended = threading.Event()
        self._expected = []
        for path, body in wanted:
            stream = WatchedStream(self._url, path, body)
            stream.join(120)
            assert not stream.error, (body, stream.error)
            self._expected.append(stream)
        self._threads = [threading.Thread(target=self._run, args=(n,), daemon=True) for n in range(CLIENTS)]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def finish(self) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join(180)
            assert not thread.is_alive(), "a client waits for ever"

    def _run(self, number: int) -> None:
        while not self._ended.is_set():
            number = (number + 1) % len(self._wanted)
            stream = WatchedStream(self._url, *self._wanted[number])
            stream.join(180)
            if not stream.error:
                self.outcomes["complete"] += 1
                self.pauses += stream.pauses
                if difference := stream.differs(self._expected[number]):
                    self.problems.append(f"{self._wanted[number]} was answered otherwise: {difference}")
            elif stream.error.startswith("503") or not stream.local_port:
                self.outcomes["not accepted"] += 1
                self._ended.wait(0.3)
            elif stream.local_port in self.lost_ports:
                self.outcomes["lost with its Http Server"] += 1
            else:
                self.problems.append(f"{self._wanted[number]}: {stream.error}")


def killed(server: LightLLMServer, name: str, clients: Clients) -> bool:
    """Kills a process; False: it is just being started again."""
    try:
        process = server.child(name)
    except AssertionError:
        return False
    if name.startswith("http-"):
        kill(process, clients.lost_ports)
    else:
        process.kill()
    return True


def recovered(server: LightLLMServer) -> bool:
    try:
        return httpx.get(server.url + "/health", timeout=5).status_code == 200
    except httpx.HTTPError:
        return False


def pause_after(kill: float, following: float, pauses: list[tuple[float, float]]) -> float:
    """For how long a stream stood still at most, between a kill and the following one."""
    return max(
        (end - max(begin, kill) for begin, end in pauses if kill < end and begin < following), default=0.0
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model_folder(tmp_path_factory.mktemp("model") / "tiny", context_length=2048)


@pytest.fixture(
    params=[
        "mock, 1 http",
        "mock, 3 http",
        "demo, tp 1, 3 http",
        "demo, tp 2, 1 http",
        "images, tp 1, 1 http",
    ]
)
def disturbed(request: pytest.FixtureRequest, folder: Path, tmp_path: Path) -> Iterator[Disturbed]:
    kind, *numbers = request.param.split(", ")
    workers = numbers[-1].split()[0]
    options = ["--httpserver_workers", workers, "--max_restarts", "1000", "--disable_log_stats"]
    if kind == "images":
        with vision_server(tmp_path / "model", "qwen2.5-vl, published", *options) as served:
            yield Disturbed(
                served.server,
                KINDS | {"visual", "cache"},
                requests(model_of(served.server)) + image_requests(served),
            )
        return
    if kind == "mock":
        options += ["--model_dir", str(folder), "--mock_backend", f"step_ms={STEP_MS}", "--max_total_token_num", "20000"]  # fmt: skip
    else:
        options += ["--device", "cpu", "--data_type", "fp32", "--tp", numbers[0].split()[1], "--max_total_token_num", "16000"]  # fmt: skip
    with LightLLMServer(options) as server:
        yield Disturbed(server, KINDS, requests(model_of(server)))


def model_of(server: LightLLMServer) -> str:
    server.wait_ready()
    return str(httpx.get(server.url + "/v1/models").json()["data"][0]["id"])


def test_no_accepted_request_is_lost_or_changed_while_processes_are_killed(disturbed: Disturbed) -> None:
    server, kinds, wanted = disturbed
    clients = Clients(server, wanted)
    names = sorted(" ".join(c.cmdline()).strip().removeprefix("lightllm ") for c in server.note_children())
    names = [name for name in names if name.split("-")[0] in kinds]
    assert {name.split("-")[0] for name in names} == kinds
    rng, kills, turn = random.Random(1), list[tuple[str, float]](), list(names)
    clients.start()
    end = time.monotonic() + SECONDS
    while turn or time.monotonic() < end:
        time.sleep(EVERY)
        if not recovered(server):
            continue  # ranks load a model: what is killed before they have done so has done nothing yet
        name = turn[0] if turn else rng.choice(names)
        at = time.monotonic()
        if killed(server, name, clients):
            kills.append((name, at))
            turn = turn[1:]
    clients.finish()
    print(f"answers {dict(clients.outcomes)}; {len(clients.problems)} lost or changed")
    for name in names:
        pauses = [
            pause_after(at, following, clients.pauses)
            for (killed_name, at), (_, following) in itertools.pairwise([*kills, ("", math.inf)])
            if killed_name == name
        ]
        print(
            f"  {name} killed {len(pauses)} times; streams stood still for {statistics.median(pauses):.1f} s (median), "
            f"{max(pauses):.1f} s (longest)"
        )
    assert clients.problems == []
    assert clients.outcomes["complete"] > 0
    wait_until(lambda: metric(server, "lightllm_slots_used") == 0, "slots stay in use")
    assert metric(server, "lightllm_batch_current_size") == metric(server, "lightllm_queue_size") == 0
