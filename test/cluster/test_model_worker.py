"""A controller, a worker and the server that it starts, each a real process; asked in both protocols."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import httpx
import pytest
from cluster.conftest import RunningController

from lightllm.cluster.workers.command import main
from lightllm.cluster.workers.conversations import CONVERSATIONS, conversation_of
from lightllm.ipc.child import die_with_parent

SECRET = "a secret of sixteen"


class Process:
    """A command with its output; ended by its own process id."""

    def __init__(self, *words: str, **environment: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            env=os.environ | environment, preexec_fn=die_with_parent,
        )  # fmt: skip
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        self.lines.extend(self.process.stdout)

    def end(self) -> int:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(60)
        self._reader.join(10)
        return code


@pytest.fixture(scope="module")
def secret_file(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("cluster") / "secret"
    path.write_text(SECRET)
    return str(path)


def free_ports() -> int:
    """One, and the next one."""
    while True:
        with socket.socket() as first, socket.socket() as second:
            first.bind(("127.0.0.1", 0))
            port = first.getsockname()[1]
            with contextlib.suppress(OSError, OverflowError):
                second.bind(("127.0.0.1", port + 1))
                return port


@pytest.fixture(scope="module")
def running(secret_file) -> Iterator[RunningController]:
    """With one worker, whose server has the demo model."""
    controller = RunningController(cluster_secret_file=secret_file, dispatch_method="kv_aware")
    words = ("lightllm.cluster.workers", "model", "--port", "0", "--controller_address", controller.url,
             "--cluster_secret_file", secret_file, "--labels", "zone=a", "--", "--max_total_token_num", "6000", "--data_type", "fp32",
             "--kv_events", f"tcp://127.0.0.1:{free_ports()}")  # fmt: skip
    worker = Process(*words)
    try:
        controller.wait_for(lambda: len(controller.registry) or worker.process.poll() is not None, 120)
        assert len(controller.registry), "".join(worker.lines)
        yield controller
    finally:
        code = worker.end()
        left = len(controller.registry)
        controller.end()
        assert code == 0 and left == 0, "".join(worker.lines)


def chat(url: str, question: str, **more) -> dict:
    body = {
        "model": "lightllm-demo",
        "messages": [{"role": "user", "content": question}],
        "temperature": 0,
        **more,
    }
    answer = httpx.post(url + "/v1/chat/completions", json=body, timeout=60)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_a_worker_registers_with_what_its_server_says_of_itself(running):
    (worker,) = running.registry
    said = worker.description
    assert said.model_names == ("lightllm-demo",) and said.kv_tokens == 6000 and said.kind == "lightllm"
    assert said.labels == {"zone": "a"} and said.api_url != said.url


def test_clients_reach_the_server_through_the_controller(running):
    assert chat(running.url, "2+3=")["choices"][0]["message"]["content"] == "5"


def test_fastchats_client_gets_chunks_with_the_whole_text_so_far(running):
    address = httpx.post(running.url + "/get_worker_address", json={"model": "lightllm-demo"}).json()[
        "address"
    ]
    conversation = httpx.post(address + "/worker_get_conv_template", json={}).json()["conv"]
    assert conversation == CONVERSATIONS["chatml"]
    prompt = "<|im_start|>user\n2+3=<|im_end|>\n<|im_start|>assistant\n"
    params = {"model": "lightllm-demo", "prompt": prompt, "temperature": 0, "max_new_tokens": 8, "stop": conversation["stop_str"],
              "top_k": -1, "echo": False, "logprobs": None}  # fmt: skip
    for url in (address, running.url):
        answer = httpx.post(url + "/worker_generate_stream", json=params, timeout=60)
        chunks = [json.loads(part) for part in answer.content.split(b"\0") if part]
        texts = [chunk["text"] for chunk in chunks]
        assert texts[-1] == "5" and all(later.startswith(text) for text, later in zip(texts, texts[1:]))
        assert chunks[-1]["finish_reason"] == "stop" and chunks[-1]["error_code"] == 0
        assert chunks[-1]["usage"]["total_tokens"] == sum(
            chunks[-1]["usage"][name] for name in ("prompt_tokens", "completion_tokens")
        )
        whole = httpx.post(url + "/worker_generate", json=params, timeout=60).json()
        assert whole["text"] == "5"
    count = httpx.post(address + "/count_token", json={"prompt": prompt}).json()
    assert count["count"] == chunks[-1]["usage"]["prompt_tokens"] and count["error_code"] == 0
    assert httpx.post(address + "/model_details", json={}).json()["context_length"] > 100
    status = httpx.post(address + "/worker_get_status", json={}).json()
    assert status["model_names"] == ["lightllm-demo"] and status["queue_length"] == 0


def test_a_response_is_kept_continued_and_deleted_through_the_controller(running):
    url = running.url + "/v1/responses"
    asked = {"model": "lightllm-demo", "input": "2+3=", "temperature": 0}
    first = httpx.post(url, json=asked, timeout=60).json()
    place = f"{url}/{first['id']}"
    assert httpx.get(place).json()["output"] == first["output"]
    assert httpx.get(place + "/input_items").json()["data"][0]["content"][0]["text"] == "2+3="
    again = httpx.post(
        url, json=asked | {"input": "and 1+1=", "previous_response_id": first["id"]}, timeout=60
    ).json()
    assert again["previous_response_id"] == first["id"]
    assert again["usage"]["input_tokens"] > first["usage"]["input_tokens"] + 6
    assert httpx.delete(place).json()["deleted"] is True and httpx.get(place).status_code == 404
    assert httpx.post(running.url + "/flush_cache").json()["failed"] == []
    assert httpx.get(running.url + "/get_model_name").json() == {"model_name": "lightllm-demo"}


def test_the_controller_hears_what_the_server_has_cached(running):
    def blocks() -> int:
        (worker,) = httpx.get(running.url + "/workers").json()["workers"]
        return worker["kv_blocks"] or 0

    asked = {"model": "lightllm-demo", "max_tokens": 1, "temperature": 0}
    httpx.post(running.url + "/flush_cache")
    running.wait_for(lambda: blocks() == 0)
    for prompt in ([*range(5, 205)], "one two three four " * 100):
        expected = blocks()
        usage = httpx.post(running.url + "/v1/completions", json=asked | {"prompt": prompt}).json()["usage"]
        expected += usage["prompt_tokens"] // 64
        running.wait_for(lambda expected=expected: blocks() == expected)
    policy = running.controller.policy
    assert len(policy._prompts) == 3 + 1900 // 256


def test_a_prompt_that_is_too_long_has_fastchats_code_for_it(running):
    params = {"model": "lightllm-demo", "prompt": "word " * 9000, "max_new_tokens": 8}
    answer = httpx.post(running.url + "/worker_generate", json=params, timeout=60).json()
    assert answer["error_code"] == 40303 and "token" in answer["text"]


def test_a_controller_that_has_forgotten_its_workers_knows_them_within_ten_seconds(running):
    """Beats to one that has forgotten them are answered with a wish for a registration."""
    url = next(iter(running.registry)).url
    running.loop.call_soon_threadsafe(running.registry.remove, url)
    begun = time.monotonic()
    running.wait_for(lambda: len(running.registry) == 0)
    running.wait_for(lambda: len(running.registry) == 1)
    assert time.monotonic() - begun < 10
    assert chat(running.url, "2+3=")["choices"][0]["message"]["content"] == "5"


@pytest.mark.parametrize(
    "words, reason",
    [
        (["rocket"], "There is no worker 'rocket'"), ([], "Which kind of worker"), (["model", "--prt", "1"], "--port"),
        (["model", "--server_url", "http://x", "--", "--tp", "1"], "two servers"), (["model", "--speed", "0"], "more than 0"),
        (["model", "--cluster_secret_file", "/nowhere"], "cannot be read"), (["model", "--port", "0", "--", "--port", "9"], "--host and --port"),
    ],
)  # fmt: skip
def test_a_wrong_configuration_is_one_line(words, reason, capsys):
    assert main(words) == 2
    line = capsys.readouterr().err
    assert reason in line and line.startswith("lightllm worker: error: ") and line.count("\n") == 1


def test_a_server_that_does_not_start_ends_its_worker():
    worker = Process("lightllm.cluster.workers", "model", "--port", "0", "--", "--no_such_option")
    assert worker.process.wait(60) == 2
    worker._reader.join(10)
    assert "exit code 2" in worker.lines[-1]


@pytest.mark.parametrize(
    "template, name",
    [("{{'<|im_start|>' + role}}", "chatml"), ("<|start_header_id|>", "llama-3"), ("<start_of_turn>", "gemma"), ("[INST]", "llama-2"), ("", "raw")],
)  # fmt: skip
def test_the_conversation_is_found_by_the_chat_template(template, name):
    assert conversation_of(template) == name
