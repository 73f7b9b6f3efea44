"""The whole server with the mock backend: real processes, real HTTP, real signals."""

import json
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from support.model_folder import make_model_folder
from support.server import LightLLMServer

CHILDREN = ["backend-0", "router", "detokenizer", "http-0"]
SHUTTING_DOWN = "the server is shutting down"


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory) -> str:
    return str(make_model_folder(tmp_path_factory.mktemp("model") / "tiny"))


@pytest.fixture
def launch(model_dir):
    servers = []

    def start(spec: str = "", *options: str) -> LightLLMServer:
        mock = ["--mock_backend", spec] if spec else ["--mock_backend"]
        servers.append(LightLLMServer(["--model_dir", model_dir, *mock, *options]))
        servers[-1].wait_ready()
        return servers[-1]

    yield start
    for server in servers:
        server.abandon()


@pytest.fixture(scope="module")
def shaken(model_dir):
    """A server with two Http workers whose rounds fail now and then."""
    options = ["--mock_backend", "slots=5000,fail_every=7", "--httpserver_workers", "2"]
    with LightLLMServer(["--model_dir", model_dir, *options]) as server:
        yield server


def generate(server: LightLLMServer, tokens: int, **parameters) -> httpx.Response:
    body = {"inputs": "hello", "parameters": {"max_new_tokens": tokens, "ignore_eos": True, **parameters}}
    return httpx.post(server.url + "/generate", json=body, timeout=30)


class Stream(threading.Thread):
    """A streamed request in a thread: `first` is set with its first token."""

    def __init__(self, server: LightLLMServer, tokens: int) -> None:
        super().__init__(daemon=True)
        self.first = threading.Event()
        self.events: list[dict] = []
        self.error: Exception | None = None
        self._url, self._tokens = server.url + "/generate_stream", tokens
        self.start()

    def run(self) -> None:
        body = {"inputs": "hello", "parameters": {"max_new_tokens": self._tokens, "ignore_eos": True}}
        try:
            with httpx.stream("POST", self._url, json=body, timeout=30) as response:
                for event in _events(response):
                    self.events.append(event)
                    self.first.set()
        except httpx.HTTPError as error:
            self.error = error
        self.first.set()

    def wait_first(self) -> None:
        assert self.first.wait(10)
        assert self.events, self.error


def _events(response: httpx.Response) -> Iterator[dict]:
    for line in response.iter_lines():
        if line.startswith("data:"):
            yield json.loads(line[5:])


def test_a_server_answers_reports_its_slots_and_loads_no_torch(shaken):
    assert "model tiny — 5000 slots" in shaken.log
    answer = generate(shaken, 12)
    assert answer.status_code == 200 and answer.json()["count_output_tokens"] == 12
    for process in (shaken.process.pid, *(shaken.child(name).pid for name in CHILDREN)):
        assert "libtorch" not in Path(f"/proc/{process}/maps").read_text()


def test_a_batch_of_more_prompts_than_may_wait_at_once_is_answered_in_order(shaken):
    """256 of one request wait at once."""
    prompts = [[3 + i % 7] * (1 + i % 5) for i in range(600)]
    body = {"prompt": prompts, "max_tokens": 2, "seed": 1, "ignore_eos": True}
    answer = httpx.post(shaken.url + "/v1/completions", json=body, timeout=60).json()
    assert [choice["index"] for choice in answer["choices"]] == list(range(600))
    assert answer["usage"]["completion_tokens"] == 1200
    assert answer["usage"]["prompt_tokens"] == sum(map(len, prompts))


def test_the_answer_depends_on_the_seed_alone_also_when_rounds_fail(shaken):
    seeds = [3, 4, 3, 3, 4]
    answers: dict[int, str] = {}

    def ask(number: int) -> None:
        answers[number] = generate(shaken, 40, seed=seeds[number]).json()["generated_text"][0]

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers) == 5
    assert {answers[i] for i in (0, 2, 3)} == {answers[0]} != {answers[1]}
    assert answers[1] == answers[4]
    shaken.wait_for("scripted failure")


def test_out_of_memory_in_rounds_fails_no_request(launch):
    server = launch("slots=5000,fail_every=4,fail_oom=1")
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda seed: generate(server, 20, seed=seed), range(8)))
    assert [answer.status_code for answer in answers] == [200] * 8
    assert [answer.json()["count_output_tokens"] for answer in answers] == [20] * 8
    server.wait_for("failed .1 in a row.")


def test_sigterm_while_streaming_finishes_the_stream_and_refuses_new_requests(launch):
    server = launch("step_ms=20")
    stream = Stream(server, 80)
    stream.wait_first()
    server.send(signal.SIGTERM)
    server.wait_for("draining: 1 running")
    refused = generate(server, 1)
    assert refused.status_code == 503 and "Retry-After" in refused.headers
    assert server.wait() == 0
    stream.join(5)
    assert len(stream.events) == 80 and stream.error is None
    assert stream.events[-1]["finished"] is True
    server.check_nothing_left()


def test_a_drain_that_takes_too_long_is_ended(launch):
    server = launch("step_ms=20", "--drain_timeout", "0.5")
    stream = Stream(server, 1000)
    stream.wait_first()
    begin = time.monotonic()
    assert server.stop() == 0
    assert time.monotonic() - begin < 8  # the stream alone would take 20 s
    stream.join(5)
    assert stream.error is None and stream.events[-1] == {"error": SHUTTING_DOWN, "finished": True}
    assert "Traceback" not in server.log


@pytest.mark.parametrize("victim", ["router", pytest.param("http-0", marks=pytest.mark.slow)])
def test_a_child_killed_while_streaming_ends_the_server_with_its_name(launch, victim):
    server = launch("step_ms=10", "--max_restarts", "0")
    stream = Stream(server, 1000)
    stream.wait_first()
    server.child(victim).kill()
    assert server.wait(10) == 1
    assert f"lightllm: error: {victim} failed: was killed by SIGKILL" in server.log
    assert "Traceback" not in server.log
    stream.join(5)
    if victim != "http-0":  # the client is told
        assert stream.error is None and stream.events[-1] == {"error": SHUTTING_DOWN, "finished": True}
    server.check_nothing_left()


def test_a_backend_that_dies_in_a_round_ends_the_server_with_its_name(launch):
    server = launch("die_after=3", "--max_restarts", "0")
    stream = Stream(server, 100)
    assert server.wait(10) == 1
    assert "lightllm: error: backend-0 failed: ended with exit code 17" in server.log
    stream.join(5)
    server.check_nothing_left()


@pytest.mark.slow  # with children that do nothing: test_supervisor_lifecycle.py
def test_kill_9_of_the_launch_command_leaves_no_process(launch):
    server = launch("step_ms=10")
    stream = Stream(server, 1000)
    stream.wait_first()
    server.send(signal.SIGKILL)
    server.wait(10)
    server.check_nothing_left(files=False)


@pytest.mark.slow  # with children that do nothing: test_supervisor_lifecycle.py
def test_sigterm_while_the_model_loads_stops_at_once(model_dir):
    server = LightLLMServer(["--model_dir", model_dir, "--mock_backend", "init_ms=60000"])
    try:
        server.wait_for("backend-0 loading — preparing the mock backend")
        server.send(signal.SIGTERM)
        assert server.wait(10) == 0
        server.check_nothing_left()
    finally:
        server.abandon()


def test_a_broken_tokenizer_ends_the_launch_with_the_reason(model_dir, tmp_path):
    folder = make_model_folder(tmp_path / "broken")
    (folder / "tokenizer.json").write_text("{")
    server = LightLLMServer(["--model_dir", str(folder), "--mock_backend"])
    try:
        assert server.wait(15) == 2
        assert "failed to start: " in server.log and "tokenizer" in server.log.splitlines()[-1]
        server.check_nothing_left()
    finally:
        server.abandon()
