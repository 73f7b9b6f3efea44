"""The real process: started as the Supervisor starts it, commanded over its channel."""

from __future__ import annotations

import http.client
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from support.fake_engine import DEFAULT_ANSWER, FakeEngine

from lightllm.config import ServerConfig
from lightllm.ipc.child import CHANNEL_VARIABLE, RUNTIME_VARIABLE
from lightllm.ipc.runtime_dir import RuntimeDir
from lightllm.tokenizer import Tokenizer

STREAM = {"prompt": "x", "max_tokens": 450, "stream": True}


class Process:
    """`python -m lightllm.httpserver` with a channel and a listening socket."""

    def __init__(self, runtime: RuntimeDir, config: ServerConfig) -> None:
        runtime.config_file.write_bytes(config.to_json())
        self.channel, theirs = socket.socketpair()
        listener = socket.create_server(("127.0.0.1", 0))
        self.address: tuple[str, int] = listener.getsockname()
        self.url = f"http://127.0.0.1:{self.address[1]}"
        environment = dict(os.environ)
        environment |= {CHANNEL_VARIABLE: str(theirs.fileno()), RUNTIME_VARIABLE: str(runtime.path)}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "lightllm.httpserver", "--worker", "0", "--fd", str(listener.fileno())],
            env=environment, pass_fds=(theirs.fileno(), listener.fileno()),
        )  # fmt: skip
        theirs.close()
        listener.close()
        self.channel.settimeout(60)
        self._lines = self.channel.makefile("rb")

    def status(self) -> dict[str, Any]:
        return json.loads(self._lines.readline())

    def command(self, action: str) -> None:
        self.channel.sendall(json.dumps({"action": action}).encode() + b"\n")

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(10)
        self._lines.close()
        self.channel.close()


@pytest.fixture
def own_runtime(tmp_path: Path) -> Iterator[RuntimeDir]:
    runtime = RuntimeDir.create(tmp_path / "r") if (tmp_path / "r").mkdir() is None else None
    assert runtime is not None
    yield runtime
    runtime.remove()


def test_serves_drains_and_stops(own_runtime: RuntimeDir, model_folder: Path, tokenizer: Tokenizer) -> None:
    process = Process(own_runtime, ServerConfig(model_dir=str(model_folder), model_name=["tiny"]))
    try:
        assert process.status()["state"] == "loading"
        ready = process.status()
        assert ready["state"] == "ready" and {"tokenizer", "app"} <= set(ready["seconds"])
        assert httpx.get(f"{process.url}/liveness").status_code == 200
        assert httpx.get(f"{process.url}/readiness").status_code == 503  # no router yet
        modules = Path(f"/proc/{process.process.pid}/maps").read_text()
        assert "torch" not in modules
        engine = FakeEngine(own_runtime, tokenizer)
        try:
            body = {"inputs": "x", "parameters": {"max_new_tokens": 50}}
            answer = httpx.post(f"{process.url}/generate", json=body).json()
            assert answer["generated_text"] == [DEFAULT_ANSWER]
            process.command("drain")
            engine.wait_for(lambda: httpx.post(f"{process.url}/generate", json=body).status_code == 503)
            engine.script.hold = True
            before = time.monotonic()
            process.command("stop")
            assert process.process.wait(20) == 0
            assert time.monotonic() - before < 5
        finally:
            engine.close()
        assert process.status()["state"] == "stopped"
    finally:
        process.close()


def test_connections_end_with_their_answers_while_the_server_drains(
    own_runtime: RuntimeDir, model_folder: Path, tokenizer: Tokenizer
) -> None:
    process = Process(own_runtime, ServerConfig(model_dir=str(model_folder)))
    engine = FakeEngine(own_runtime, tokenizer)
    connections: list[http.client.HTTPConnection] = []
    try:
        while process.status()["state"] != "ready":
            pass
        for _ in range(3):
            connections.append(http.client.HTTPConnection(*process.address, timeout=30))
            connections[-1].request("GET", "/liveness")
            answer = connections[-1].getresponse()
            assert answer.read() and answer.getheader("connection") is None
        idle, streaming, arriving = connections
        engine.script.hold = True
        body = json.dumps(STREAM).encode()
        streaming.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
        arriving.putrequest("POST", "/v1/completions")
        arriving.putheader("Content-Type", "application/json")
        arriving.putheader("Content-Length", str(len(body)))
        arriving.endheaders(body[:5])
        engine.wait_for(lambda: engine.active == 1)
        process.command("drain")
        assert idle.sock.recv(1) == b"", "an idle connection is closed"
        engine.script.hold = False
        answer = streaming.getresponse()
        assert answer.status == 200 and answer.read().endswith(b"data: [DONE]\n\n")
        assert streaming.sock is None or streaming.sock.recv(1) == b"", (
            "a stream is the last answer of its connection"
        )
        arriving.send(body[5:])
        answer = arriving.getresponse()
        assert answer.status in (200, 503) and answer.getheader("connection") == "close", (
            "answered, not cut off"
        )
        fresh = httpx.get(f"{process.url}/liveness")
        assert (fresh.status_code, fresh.headers["connection"]) == (200, "close")
    finally:
        for connection in connections:
            connection.close()
        engine.close()
        process.close()


def test_lost_supervisor_ends_streams_with_an_error_event_and_whole_answers_with_503(
    own_runtime: RuntimeDir, model_folder: Path, tokenizer: Tokenizer, capfd: pytest.CaptureFixture[str]
) -> None:
    process = Process(own_runtime, ServerConfig(model_dir=str(model_folder)))
    engine = FakeEngine(own_runtime, tokenizer)
    try:
        while process.status()["state"] != "ready":
            pass
        engine.script.endless, engine.script.pause = True, 0.05
        body = {"inputs": "x", "parameters": {"max_new_tokens": 450}}
        with ThreadPoolExecutor(1) as pool:
            whole = pool.submit(httpx.post, f"{process.url}/generate", json=body, timeout=30)
            with httpx.stream("POST", f"{process.url}/v1/completions", json=STREAM) as response:
                lines = response.iter_lines()
                next(lines)
                engine.wait_for(lambda: engine.active == 2)
                before = time.monotonic()
                process.channel.shutdown(socket.SHUT_RDWR)
                events = [line for line in lines if line]
            assert whole.result().status_code == 503 and "retry-after" in whole.result().headers
        assert '"code":"server_stopping"' in events[-2] and events[-1] == "data: [DONE]"
        assert process.process.wait(20) == 0
        assert time.monotonic() - before < 5
        assert "Traceback" not in capfd.readouterr().err
    finally:
        engine.close()
        process.close()


def test_clients_that_do_not_read_do_not_hold_up_the_stop(
    own_runtime: RuntimeDir, model_folder: Path, tokenizer: Tokenizer, capfd: pytest.CaptureFixture[str]
) -> None:
    process = Process(own_runtime, ServerConfig(model_dir=str(model_folder)))
    engine = FakeEngine(own_runtime, tokenizer)
    engine.ready(max_req_total_len=1_000_000)
    raw = socket.socket()
    try:
        while process.status()["state"] != "ready":
            pass
        engine.script.endless, engine.script.tokens_a_round, engine.script.pause = True, 200, 0.02
        body = b'{"inputs": "x", "parameters": {"max_new_tokens": 3900}}'  # more than all buffers hold
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        raw.connect(("127.0.0.1", int(process.url.rpartition(":")[2])))
        raw.sendall(
            b"POST /generate_stream HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body
        )
        engine.wait_for(lambda: engine.added and engine.active == 0)
        process.command("stop")
        assert process.process.wait(20) == 0
        assert "Traceback" not in capfd.readouterr().err
    finally:
        raw.close()
        engine.close()
        process.close()


def test_bad_model_folder_is_reported(own_runtime: RuntimeDir, tmp_path: Path) -> None:
    process = Process(own_runtime, ServerConfig(model_dir=str(tmp_path / "missing")))
    try:
        states = [process.status(), process.status()]
        assert states[-1]["state"] == "failed" and str(tmp_path) in states[-1]["detail"]
        assert process.process.wait(10) == 1
    finally:
        process.close()
