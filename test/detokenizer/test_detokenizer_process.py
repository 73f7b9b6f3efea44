"""The Detokenizer as a real process behind real sockets."""

import json
import os
import socket
import subprocess
import sys

import pytest
from support import tokenizers

from lightllm.config import ServerConfig
from lightllm.ipc.channels import Epoch, PullChannel, PushChannel, make_context
from lightllm.ipc.runtime_dir import RuntimeDir
from lightllm.protocol import codec
from lightllm.protocol.arrays import int32
from lightllm.protocol.messages import AbortRequest, AddRequest, Choice, Finish, RoundTokens, make_request_id
from lightllm.sampling_params import SamplingParams
from lightllm.tokenizer import load_tokenizer

TIMEOUT_MS = 20_000


class Server:
    """The other processes, played by the test: Supervisor, Router and two Http Servers."""

    def __init__(self, folder):
        self.model_dir = str(tokenizers.byte_level(folder / "model"))
        (folder / "model" / "config.json").write_text(json.dumps({"eos_token_id": 1, "vocab_size": 421}))
        self.tokenizer = load_tokenizer(self.model_dir)
        self.runtime = RuntimeDir(folder)
        config = ServerConfig(model_dir=self.model_dir, httpserver_workers=2)
        self.runtime.config_file.write_bytes(config.to_json())
        self.context = make_context()
        runtime, context, self.epoch = self.runtime, self.context, Epoch(0)
        self.http = [PullChannel(context, runtime.http_results(i), codec.to_http, Epoch(0)) for i in range(2)]
        self.router = PullChannel(context, runtime.router_intake, codec.to_router, Epoch(0))
        self.detokenizer = PushChannel(context, runtime.detokenizer_intake, self.epoch)
        self.channel, child_end = socket.socketpair()
        self.channel.settimeout(TIMEOUT_MS / 1000)
        environment = {
            **os.environ,
            "LIGHTLLM_CHANNEL_FD": str(child_end.fileno()),
            "LIGHTLLM_RUNTIME_DIR": str(folder),
        }
        self.process = subprocess.Popen(
            [sys.executable, "-m", "lightllm.detokenizer"],
            env=environment,
            pass_fds=[child_end.fileno()],
            stderr=subprocess.PIPE,
            text=True,
        )
        child_end.close()
        self.lines = self.channel.makefile("rb")

    def status(self):
        return json.loads(self.lines.readline())

    def receive(self, channel):
        assert channel.wait(TIMEOUT_MS), "no message came"
        return channel.receive()

    def close(self):
        self.process.kill()
        self.process.communicate()
        self.lines.close()
        self.channel.close()
        self.context.destroy(linger=0)


@pytest.fixture
def server(tmp_path):
    server = Server(tmp_path)
    yield server
    server.close()


def add(request_id, **params):
    params = SamplingParams(max_new_tokens=100, **params)
    return AddRequest(int32([5]), params, [Choice(request_id, 0)])


def test_text_goes_to_the_right_worker_stop_goes_to_the_router_and_stop_command_ends_it(server):
    assert server.status()["state"] == "loading"
    ready = server.status()
    assert ready["state"] == "ready" and ready["seconds"]["tokenizer"] > 0
    first, second = make_request_id(0, 1), make_request_id(1, 1)
    server.detokenizer.send(add(first))
    server.detokenizer.send(add(second, stop_sequences=["ld"]))
    ids = server.tokenizer.encode("Hello world", add_special_tokens=False)
    for token_id in ids:
        server.detokenizer.send(RoundTokens([first, second], [token_id] * 2, [-1.0] * 2))
    server.detokenizer.send(RoundTokens([], [], [], finished=[Finish(first, "length", 1, len(ids))]))

    text, rounds = "", 0
    while True:
        deltas = server.receive(server.http[0])
        text += "".join(deltas.texts)
        rounds += 1
        if deltas.finished:
            break
    assert text == "Hello world" and rounds == len(ids) + 1
    text = ""
    while True:
        deltas = server.receive(server.http[1])
        text += "".join(deltas.texts)
        if deltas.finished:
            break
    assert text == "Hello wor"
    assert server.receive(server.router) == AbortRequest(second, "stop")

    server.channel.sendall(b'{"action": "stop"}\n')
    assert server.process.wait(timeout=10) == 0
    assert server.status()["state"] == "stopped"


def test_malformed_messages_are_logged_and_the_process_lives(server):
    server.status(), server.status()
    request_id = make_request_id(0, 1)
    server.detokenizer.send_bytes(b"\xc1 no msgpack")
    server.detokenizer.send_bytes(codec.encode(AbortRequest(request_id)))
    server.detokenizer.send(RoundTokens([request_id], [1, 2], [0.0]))
    server.detokenizer.send(add(make_request_id(9, 1)))
    server.detokenizer.send(add(request_id))
    server.detokenizer.send(RoundTokens([request_id], server.tokenizer.encode("a", False), [0.0]))
    assert server.receive(server.http[0]).texts == ["a"]
    server.channel.sendall(b'{"action": "stop"}\n')
    _, log = server.process.communicate(timeout=10)
    assert log.count("dropped a malformed message") == 4 and "Traceback" not in log


def test_a_lost_supervisor_ends_the_process(server):
    server.status(), server.status()
    server.lines.close()
    server.channel.close()
    assert server.process.wait(timeout=10) == 0


def test_a_missing_tokenizer_is_reported_in_one_line(tmp_path):
    server = Server(tmp_path)
    try:
        server.process.kill()
        server.process.wait()
        os.unlink(os.path.join(server.model_dir, "tokenizer.json"))
        os.unlink(os.path.join(server.model_dir, "tokenizer_config.json"))
        ours, theirs = socket.socketpair()
        environment = {
            **os.environ,
            "LIGHTLLM_CHANNEL_FD": str(theirs.fileno()),
            "LIGHTLLM_RUNTIME_DIR": str(tmp_path),
        }
        process = subprocess.run(
            [sys.executable, "-m", "lightllm.detokenizer"],
            env=environment,
            pass_fds=[theirs.fileno()],
            capture_output=True,
            timeout=20,
        )
        theirs.close()
        with ours, ours.makefile("rb") as lines:
            last = json.loads(lines.readlines()[-1])
        assert process.returncode == 1
        assert last["state"] == "failed" and "neither tokenizer.json nor tokenizer.model" in last["detail"]
    finally:
        server.close()


def test_the_process_loads_neither_torch_nor_transformers(tmp_path):
    model_dir = tokenizers.byte_level(tmp_path)
    code = (
        "import sys, lightllm.detokenizer.process as p\n"
        f"t = p.load_tokenizer({str(model_dir)!r})\n"
        "t.decode(t.encode('Hello'))\n"
        "t.apply_chat_template([{'role': 'user', 'content': 'Hi'}])\n"
        "bad = {'torch', 'transformers', 'huggingface_hub'} & set(sys.modules)\n"
        "sys.exit(f'loaded {bad}' if bad else 0)"
    )
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30)
    assert process.returncode == 0, process.stderr
