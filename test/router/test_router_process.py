"""The Router as a process, with real sockets: the test plays Supervisor, Http Server, Detokenizer and Model Backend."""

from __future__ import annotations

import dataclasses
import json
import os
import socket
import subprocess
import sys
import time

import msgspec
import pytest
from support.router_device import FakeDevice, add_request, cut_at_eos, generate_alone, make_limits

from lightllm.config import ServerConfig
from lightllm.ipc.beats import read_beats
from lightllm.ipc.channels import Epoch, PullChannel, PushChannel, make_context
from lightllm.ipc.rpc import RpcServer
from lightllm.ipc.runtime_dir import RuntimeDir
from lightllm.ipc.snapshot import SnapshotReader
from lightllm.protocol import codec
from lightllm.protocol.control import Attach, Command, ModelReady, Status
from lightllm.protocol.messages import (
    AbortRequest,
    Accepted,
    AddRequest,
    FlushCache,
    Flushed,
    Hello,
    Refused,
    make_request_id,
)
from lightllm.protocol.rounds import Resync, Round

SLOTS = 64
VOCAB = 12
CONFIG = ServerConfig(
    chunked_prefill_size=8,
    batch_max_tokens=16,
    running_max_req_size=8,
    httpserver_workers=2,
    log_stats_interval=1,
)
SECONDS = 20


class RouterUnderTest:
    """`pump` moves whatever there is to move between the Router and the roles that the test plays."""

    def __init__(self, tmp_path, serve_rpc: bool = True) -> None:
        model = tmp_path / "model"
        model.mkdir()
        (model / "config.json").write_text(
            json.dumps(
                {
                    "model_type": "llama",
                    "eos_token_id": 0,
                    "max_position_embeddings": 512,
                    "vocab_size": VOCAB,
                }
            )
        )
        config = dataclasses.replace(CONFIG, model_dir=str(model))
        self.runtime = RuntimeDir(tmp_path / "run")
        self.runtime.path.mkdir()
        self.runtime.config_file.write_bytes(config.to_json())
        self.channel, theirs = socket.socketpair()
        environ = os.environ | {
            "LIGHTLLM_CHANNEL_FD": str(theirs.fileno()), "LIGHTLLM_RUNTIME_DIR": str(self.runtime.path),
        }  # fmt: skip
        self.process = subprocess.Popen(
            [sys.executable, "-m", "lightllm.router"],
            env=environ,
            pass_fds=[theirs.fileno()],
            stderr=subprocess.PIPE,
            text=True,
        )
        theirs.close()
        context, runtime, epoch = make_context(), self.runtime, Epoch(1)
        self.rounds = PullChannel(context, runtime.backend_rounds(0), codec.to_backend, epoch)
        self.detokenizer = PullChannel(context, runtime.detokenizer_intake, codec.to_detokenizer, epoch)
        self.http = [PullChannel(context, runtime.http_results(i), codec.to_http, epoch) for i in range(2)]
        self.results = PushChannel(context, runtime.round_results, epoch)
        self.intake = PushChannel(context, runtime.router_intake, epoch)
        limits = make_limits(running_max_req_size=8, batch_max_tokens=16, chunked_prefill_size=8)
        self.device = FakeDevice(limits, VOCAB)
        self.rpc = RpcServer(self.runtime.backend_control(0), {"attach": self._attach}) if serve_rpc else None
        self.fail_next = False
        self._skipping = False
        self.answers: list[Accepted | Refused] = []
        self.added: list[AddRequest] = []
        self.hellos: list[Hello] = []
        self.outputs: dict[int, list[int]] = {}
        self.finished: dict[int, object] = {}
        self.resyncs = 0
        self.log = ""

    def _attach(self, payload: bytes) -> bytes:
        request = codec.Decoder(Attach).decode(payload)
        assert (request.epoch, request.rank) == (1, 0)
        assert ServerConfig.from_json(request.config_json).batch_max_tokens == 16
        return codec.encode(ModelReady(SLOTS, VOCAB, "float32", "cpu"))

    def statuses(self, until: str) -> list[Status]:
        self.channel.settimeout(SECONDS)
        found, data = [], b""
        while not found or found[-1].state != until:
            data += self.channel.recv(4096)
            lines = data.split(b"\n")
            data = lines.pop()
            found += [msgspec.json.decode(line, type=Status) for line in lines]
        return found

    def send(self, message) -> None:
        if isinstance(message, AddRequest):
            self.device.expect(message)
            self.outputs |= {choice.request_id: choice.output_ids.tolist() for choice in message.choices}
        self.intake.send(message)

    def pump(self, until) -> None:
        deadline = time.monotonic() + SECONDS
        while not until():
            assert time.monotonic() < deadline, "the Router is silent"
            assert self.process.poll() is None
            moved = self._run_round() | self._hear()
            if not moved:
                self.rounds.wait(5)

    def _run_round(self) -> bool:
        message = self.rounds.receive()
        if isinstance(message, Resync):
            self.resyncs += 1
            self._skipping = False
        elif isinstance(message, Round) and not self._skipping:
            work = self.device.fail if self.fail_next else self.device.execute
            self._skipping, self.fail_next = self.fail_next, False
            self.results.send(work(message))
        return message is not None

    def _hear(self) -> bool:
        heard = False
        for http in self.http:
            while (answer := http.receive()) is not None:
                self.answers.append(answer)
                heard = True
        while (message := self.detokenizer.receive()) is not None:
            heard = True
            if isinstance(message, AddRequest):
                self.added.append(message)
                continue
            if isinstance(message, Hello):
                self.hellos.append(message)
                continue
            for request_id, token in zip(message.request_ids, message.token_ids, strict=True):
                self.outputs[request_id].append(token)
            for finish in message.finished:
                assert finish.request_id not in self.finished
                self.finished[finish.request_id] = finish
        return heard

    def beat(self) -> float:
        return read_beats(self.runtime.beats_dir)["router"]

    def snapshot(self):
        return SnapshotReader(self.runtime.snapshot_file).read()

    def stop(self) -> float:
        """Seconds that the stop took."""
        started = time.monotonic()
        self.channel.sendall(msgspec.json.encode(Command("stop")) + b"\n")
        self.process.wait(SECONDS)
        return time.monotonic() - started

    def close(self) -> None:
        if self.process.stderr.closed:
            return
        if self.process.poll() is None:
            self.process.kill()
        self.log = self.process.communicate()[1]
        self.channel.close()
        if self.rpc is not None:
            self.rpc.close()
        for channel in (self.rounds, self.detokenizer, *self.http, self.results, self.intake):
            channel.close()


@pytest.fixture
def router(tmp_path):
    router = RouterUnderTest(tmp_path)
    yield router
    router.close()


def alone(message: AddRequest, index: int = 0) -> list[int]:
    params = message.params
    return cut_at_eos(
        generate_alone(message.prompt_ids.tolist(), params.seed, index, VOCAB, params.max_new_tokens)
    )


def test_requests_are_served_and_everything_is_told_to_everybody(router):
    statuses = router.statuses("ready")
    assert [s.state for s in statuses][-1] == "ready" and statuses[-1].seconds
    state = router.snapshot()
    assert (state.ready, state.slots_total, state.max_req_total_len, state.vocab_size) == (
        1,
        SLOTS,
        SLOTS,
        VOCAB,
    )
    messages = [add_request(make_request_id(i % 2, i + 1), list(range(1, 4 + i)), 20) for i in range(6)]
    for message in messages:
        router.send(message)
    router.pump(lambda: len(router.finished) == 6)
    assert sorted(i for answer in router.answers for i in answer.request_ids) == sorted(router.outputs)
    assert all(isinstance(answer, Accepted) for answer in router.answers)
    assert [codec.encode(m) for m in router.added] == [codec.encode(m) for m in messages]
    for message in messages:
        assert router.outputs[message.choices[0].request_id] == alone(message)
    state = router.snapshot()  # written before the last finish was sent
    assert (state.running, state.waiting, state.slots_used, state.estimated_peak) == (0, 0, 0, 0)
    assert state.finished == 6 and state.output_tokens == sum(map(len, router.outputs.values()))
    assert time.monotonic() - router.beat() < 5
    assert router.stop() < 10 and router.process.returncode == 0


def test_refusals_carry_the_numbers_and_reach_the_right_worker(router):
    router.statuses("ready")
    request_id = make_request_id(1, 5)
    router.send(add_request(request_id, [1] * 60, 5))
    router.pump(lambda: router.answers)
    (answer,) = router.answers
    assert isinstance(answer, Refused) and answer.request_ids == [request_id]
    assert answer.error == "PromptTooLong" and "65" in answer.message and "64" in answer.message
    assert not router.added


def test_abort_and_malformed_messages_disturb_nobody(router):
    router.statuses("ready")
    other = add_request(2, [5, 6], 8, ignore_eos=True)
    router.send(add_request(1, [1, 2, 3], 50, ignore_eos=True))
    router.intake.send_bytes(b"\xc1 nonsense")
    router.send(add_request(make_request_id(9, 1), [1], 3))  # there is no worker 9
    router.send(other)
    router.pump(lambda: len(router.outputs[1]) > 2)
    router.send(AbortRequest(1))
    router.pump(lambda: len(router.finished) == 2)
    assert router.finished[1].reason == "abort" and router.finished[1].output_tokens == len(router.outputs[1])
    assert router.outputs[2] == generate_alone([5, 6], 2, 0, VOCAB, 8)
    router.pump(lambda: router.snapshot().slots_used == 0)


def test_flush_is_acknowledged_to_its_worker_and_the_cache_is_empty(router):
    router.statuses("ready")
    router.send(add_request(1, [1, 2, 3], 4, ignore_eos=True))
    router.pump(lambda: router.finished and router.snapshot().slots_cached == 6)
    router.answers.clear()
    router.send(FlushCache(worker=9, ticket=1))  # there is no worker 9
    router.send(FlushCache(worker=1, ticket=77))
    router.pump(lambda: router.answers)
    assert router.answers == [Flushed(ticket=77, tokens=6)]
    router.pump(lambda: router.snapshot().slots_cached == 0)


def test_failed_round_is_followed_by_a_resync_and_the_same_tokens(router):
    router.statuses("ready")
    message = add_request(1, list(range(1, 20)), 12, ignore_eos=True)
    router.send(message)
    router.pump(lambda: len(router.outputs[1]) > 3)
    router.fail_next = True
    router.pump(lambda: router.finished)
    assert router.resyncs == 1
    assert router.outputs[1] == generate_alone(list(range(1, 20)), 1, 0, VOCAB, 12)


def test_the_snapshot_says_since_when_a_round_is_due(router):
    router.statuses("ready")
    assert router.snapshot().round_due_since == 0
    before = time.monotonic()
    router.send(add_request(1, [1, 2, 3], 4, ignore_eos=True))
    deadline = before + SECONDS
    while not router.snapshot().round_due_since:  # no round is answered meanwhile
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert before <= router.snapshot().round_due_since <= time.monotonic()
    router.pump(lambda: router.finished and not router.snapshot().round_due_since)


def test_beats_and_books_go_on_while_idle(router):
    router.statuses("ready")
    before = router.beat()
    router.pump(lambda: router.beat() > before)
    router.stop()
    router.close()
    assert "inconsistent" not in router.log and "Traceback" not in router.log


def test_stop_while_the_backend_is_still_loading_ends_at_once(tmp_path):
    router = RouterUnderTest(tmp_path, serve_rpc=False)
    router.statuses("loading")
    assert router.stop() < 10 and router.process.returncode == 0
    router.close()


def test_lost_supervisor_ends_the_router(router):
    router.statuses("ready")
    router.channel.close()
    assert router.process.wait(SECONDS) == 0


def test_router_loads_no_torch():
    code = "import lightllm.router.process, sys; print([m for m in ('torch', 'transformers', 'fastapi') if m in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"
