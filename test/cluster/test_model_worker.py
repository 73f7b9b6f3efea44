"""A controller, a worker and the server that it starts, each a real process; asked in both protocols."""

from __future__ import annotations

import asyncio
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
import openai
import pytest
from aiohttp import web
from cluster.conftest import MockWorker, RunningController, Serving

from lightllm.cluster.fastchat_protocol import WorkerError
from lightllm.cluster.workers.command import main
from lightllm.cluster.workers.config import WorkerConfig
from lightllm.cluster.workers.conversations import CONVERSATIONS, conversation_of
from lightllm.cluster.workers.huggingface import HuggingfaceApiWorker, ModelInfo
from lightllm.cluster.workers.service import WorkerService
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


class RunningWorker(Serving):
    """In this process."""

    def __init__(self, kind: str, secret_file: str, **options) -> None:
        super().__init__()
        config = WorkerConfig(port=0, cluster_secret_file=secret_file, **options)
        self.service = WorkerService(kind, config, [])
        self._task = asyncio.run_coroutine_threadsafe(self.service.run(SECRET.encode()), self.loop)

    def end(self) -> None:
        self.loop.call_soon_threadsafe(self.service.stop)
        self._task.result(20)
        super().end()


@pytest.fixture
def behind_apis(running, start, secret_file, tmp_path):
    """The same server again, as somebody's API."""
    (server,) = [worker.description.api_url for worker in running.registry]
    infos = tmp_path / "models.json"
    common = {"model_path": "lightllm-demo", "conv_template": "chatml"}
    texts, chats = (
        {"api_base": server},
        {"api_base": server + "/v1", "api": "chat", "model_names": "chats,talks"},
    )
    infos.write_text(json.dumps({"texts": common | texts, "other": common | chats}))
    options = {"controller_address": [running.url], "model_info_file": str(infos)}
    start(RunningWorker, "huggingface", secret_file, **options)
    running.wait_for(lambda: len(running.registry) == 2)
    yield running.url
    # the worker leaves with the test; the registry is the module's


@pytest.mark.parametrize("model", ["texts", "chats", "talks"])
def test_models_behind_apis_answer_in_openais_words(behind_apis, model):
    url = behind_apis
    assert model in [entry["id"] for entry in httpx.get(url + "/v1/models").json()["data"]]
    answer = chat(url, "2+3=", model=model)
    assert answer["choices"][0]["message"] == {"role": "assistant", "content": "5"}
    assert answer["choices"][0]["finish_reason"] == "stop" and answer["usage"]["completion_tokens"] > 0
    client = openai.OpenAI(base_url=url + "/v1", api_key="none")
    messages = [{"role": "user", "content": "2+3="}]
    stream = client.chat.completions.create(model=model, messages=messages, temperature=0, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == "5"


def test_models_behind_apis_answer_in_fastchats_words(behind_apis):
    prompt = "<|im_start|>user\n2+3=<|im_end|>\n<|im_start|>assistant\n"
    params = {"model": "texts", "prompt": prompt, "temperature": 0, "max_new_tokens": 8, "stop": "<|im_end|>"}
    answer = httpx.post(behind_apis + "/worker_generate_stream", json=params, timeout=60)
    chunks = [json.loads(part) for part in answer.content.split(b"\0") if part]
    assert chunks[-1]["text"] == "5" and chunks[-1]["error_code"] == 0
    completion = {"model": "texts", "prompt": prompt, "temperature": 0, "max_tokens": 8}
    answer = httpx.post(behind_apis + "/v1/completions", json=completion, timeout=60).json()
    assert answer["choices"][0]["text"] == "5"


def test_what_an_api_refuses_is_told(behind_apis):
    body = {"model": "chats", "messages": [{"role": "user", "content": "word " * 9000}]}
    answer = httpx.post(behind_apis + "/v1/chat/completions", json=body, timeout=60)
    assert answer.status_code == 400 and "token" in answer.json()["error"]["message"]
    answer = httpx.post(behind_apis + "/v1/chat/completions", json=body | {"tools": [{}]}, timeout=60)
    assert answer.status_code == 400 and answer.json()["error"]["param"] == "tools"


class Vllm(MockWorker):
    """What vLLM's server says of itself."""

    more_paths = ("/metrics",)

    async def _list(self, request: web.Request) -> web.Response:
        if request.path == "/metrics":
            return web.Response(text=VLLM_METRICS)
        return web.json_response({"data": [{"id": "m", "max_model_len": 4096}]})


VLLM_METRICS = """\
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="m"} 3.0
vllm:num_requests_running{engine="1",model_name="m"} 2.0
# TYPE vllm:num_requests_waiting gauge
vllm:num_requests_waiting{engine="0",model_name="m"} 4.0
# TYPE vllm:kv_cache_usage_perc gauge
vllm:kv_cache_usage_perc{engine="0",model_name="m"} 0.25
# TYPE vllm:cache_config_info gauge
vllm:cache_config_info{block_size="16",num_gpu_blocks="1000"} 1.0
"""


def test_a_vllm_server_is_a_worker_with_its_own_load(start, secret_file):
    controller = start(RunningController, cluster_secret_file=secret_file)
    server = start(Vllm)
    start(RunningWorker, "vllm", secret_file, controller_address=[controller.url], server_url=server.url)
    controller.wait_for(lambda: [*controller.registry] and next(iter(controller.registry)).foreign == 9)
    (worker,) = controller.registry
    said = worker.description
    assert (said.kind, said.api_url, said.model_names, said.kv_tokens) == (
        "openai",
        server.url,
        ("m",),
        16000,
    )
    assert worker.report.kv_use == 0.25 and (worker.report.running, worker.report.waiting) == (5, 4)
    answer = httpx.post(controller.url + "/v1/completions", json={"model": "m", "prompt": "a"})
    assert answer.json()["from"] == server.url and "x-lightllm-resumable" not in server.headers[-1]
    details = httpx.post(worker.url + "/model_details", json={}).json()
    assert details == {"context_length": 4096}


@pytest.mark.parametrize("api", ["text_generation", "chat"])
def test_an_api_that_is_away_is_an_error_of_the_worker(api):
    async def chunks() -> list[dict]:
        infos = {"m": ModelInfo("m", "http://127.0.0.1:1/v1", api=api)}
        worker = HuggingfaceApiWorker(WorkerConfig(no_register=True), "http://here", infos)
        try:
            return [chunk async for chunk in worker.generate_stream_gate({"model": "m", "prompt": "a"})]
        finally:
            await worker.close()

    with pytest.raises(WorkerError, match="the API of m failed") as failed:
        asyncio.run(chunks())
    assert failed.value.error_code == 50005


@pytest.mark.parametrize(
    "text, reason",
    [
        ("{", "models.json"), ("{}", "names no model"), ('{"a": {"model_path": "x", "api": "telepathy"}}', "telepathy"),
        ('{"a": {"model_path": "x", "api_base": "ftp://x"}}', "no URL"), ('{"a": {"model_path": "x", "conv_template": "z"}}', "no conversation"),
        ('{"a": {"model_path": "x", "model_names": "b"}, "b": {"model_path": "y"}}', "two models"), ('{"a": {}}', "model_path"),
    ],
)  # fmt: skip
def test_a_wrong_file_of_models_is_one_line(text, reason, tmp_path, capsys):
    path = tmp_path / "models.json"
    path.write_text(text)
    assert main(["huggingface", "--port", "0", "--no_register", "--model_info_file", str(path)]) == 2
    line = capsys.readouterr().err
    assert reason in line and line.count("\n") == 1


@pytest.mark.parametrize(
    "words, reason",
    [
        (["rocket"], "There is no worker 'rocket'"), ([], "Which kind of worker"), (["model", "--prt", "1"], "--port"),
        (["model", "--server_url", "http://x", "--", "--tp", "1"], "two servers"), (["model", "--speed", "0"], "more than 0"),
        (["model", "--cluster_secret_file", "/nowhere"], "cannot be read"), (["model", "--port", "0", "--", "--port", "9"], "--host and --port"),
        (["huggingface"], "--model_info_file is missing"), (["vllm", "--port", "0"], "vLLM is not installed"),
        (["model", "--model_info_file", "x"], "of the worker huggingface"),
        (["huggingface", "--model_info_file", "x", "--server_url", "http://y"], "no server behind"),
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
