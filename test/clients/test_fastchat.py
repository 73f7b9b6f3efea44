"""FastChat's own processes, as published: its API server and its worker on our controller, and our worker on its controller. (Its
model worker does not start with the transformers of today: what it is made of does.)"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from cluster.conftest import RunningController

from lightllm.ipc.child import die_with_parent

CLIENTS = os.path.abspath(os.environ.get("LIGHTLLM_TEST_CLIENTS", "."))
SCRIPT = Path(__file__).parent / "scripts/fastchat_worker.py"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (Path(CLIENTS) / "fastchat").is_dir(), reason="make test-clients installs FastChat"
    ),
]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def process(folder: Path, name: str, module: str, *words: str, theirs: bool) -> Iterator[None]:
    """theirs: finds FastChat's packages before the environment's."""
    environment = os.environ | {"FASTCHAT_WORKER_HEART_BEAT_INTERVAL": "3", "LOGDIR": str(folder)}
    if theirs:
        environment["PYTHONPATH"] = CLIENTS
    with open(folder / f"{name}.log", "w") as log:
        child = subprocess.Popen(
            [sys.executable, *(() if module.endswith(".py") else ("-m",)), module, *words], cwd=folder, env=environment, stdout=log, stderr=log,
            preexec_fn=die_with_parent,
        )  # fmt: skip
    try:
        yield
    finally:
        child.terminate()
        try:
            child.wait(30)
        except subprocess.TimeoutExpired:
            child.kill()


def wait_for(condition: Callable[[], object], folder: Path, seconds: float = 150.0) -> None:
    end = time.monotonic() + seconds
    while True:
        with contextlib.suppress(httpx.TransportError):
            if condition():
                return
        logs = "\n".join(f"{path.name}: {path.read_text()[-1500:]}" for path in folder.glob("*.log"))
        assert time.monotonic() < end, logs
        time.sleep(0.2)


def models(controller: str) -> set[str]:
    return set(httpx.post(controller + "/list_models", timeout=10).json()["models"])


def check(api: str, controller: str, model: str) -> None:
    """Through FastChat's API server, whole (its streams fail in pydantic 2); its own route for counting; and streamed, by a
    controller that passes chunks on."""
    body = {
        "model": model,
        "temperature": 0,
        "max_tokens": 8,
        "messages": [{"role": "user", "content": "2+3="}],
    }
    answer = httpx.post(api + "/v1/chat/completions", json=body, timeout=60)
    assert answer.status_code == 200, answer.text
    assert "5" in answer.json()["choices"][0]["message"]["content"], answer.text
    prompts = {"prompts": [{"model": model, "prompt": "hello", "max_tokens": 4}]}
    counted = httpx.post(api + "/api/v1/token_check", json=prompts, timeout=30)
    assert counted.json()["prompts"][0]["fits"] is True, counted.text
    params = {"model": model, "prompt": "2+3=", "temperature": 0, "max_new_tokens": 4}
    streamed = httpx.post(controller + "/worker_generate_stream", json=params, timeout=60)
    chunks = [json.loads(part) for part in streamed.content.split(b"\0") if part]
    assert chunks[-1]["error_code"] == 0 and "5" in chunks[-1]["text"], chunks


def test_fastchats_workers_and_api_server_work_with_our_controller_and_our_worker_with_its(tmp_path):
    ports = [free_port() for _ in range(5)]
    urls = [f"http://127.0.0.1:{port}" for port in ports]
    theirs, our_worker, their_worker, api_on_ours, api_on_theirs = urls
    ours = RunningController()
    with contextlib.ExitStack() as stack:
        stack.callback(ours.end)

        def start(name: str, module: str, url: str, *words: str, of_fastchat: bool = True) -> None:
            port = url.rpartition(":")[2]
            where = ("--host", "127.0.0.1", "--port", port)
            words = (*where, *words) if of_fastchat else (*words[:1], *where, *words[1:])
            stack.enter_context(process(tmp_path, name, module, *words, theirs=of_fastchat))

        start("their_controller", "fastchat.serve.controller", theirs)
        start(
            "api_on_ours", "fastchat.serve.openai_api_server", api_on_ours, "--controller-address", ours.url
        )
        start(
            "api_on_theirs", "fastchat.serve.openai_api_server", api_on_theirs, "--controller-address", theirs
        )
        wait_for(lambda: httpx.get(theirs + "/test_connection").text, tmp_path)
        start("our_worker", "lightllm.cluster.workers", our_worker, "model", "--controller_address", ours.url, theirs, "--",
              "--max_total_token_num", "4000", of_fastchat=False)  # fmt: skip
        worker = (str(SCRIPT), ours.url, their_worker.rpartition(":")[2])
        stack.enter_context(process(tmp_path, "their_worker", *worker, theirs=True))
        wait_for(lambda: models(ours.url) == {"lightllm-demo", "theirs"}, tmp_path)
        wait_for(lambda: models(theirs) == {"lightllm-demo"}, tmp_path)
        check(api_on_ours, ours.url, "lightllm-demo")
        check(api_on_theirs, theirs, "lightllm-demo")
        check(api_on_ours, ours.url, "theirs")
        listed = httpx.get(api_on_ours + "/v1/models", timeout=30).json()["data"]
        assert {entry["id"] for entry in listed} == {"lightllm-demo", "theirs"}
