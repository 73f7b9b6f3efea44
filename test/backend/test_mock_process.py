"""The backend process as the Supervisor starts it: control calls, rounds, contained failures, stopping, no torch."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest
from support.model_folder import VOCAB_SIZE, make_model_folder

from lightllm.backend.out_of_memory import is_out_of_memory
from lightllm.backend.pending import Computed
from lightllm.backend.process import RoundRunner
from lightllm.config import ServerConfig
from lightllm.ipc.channels import Epoch, PullChannel, PushChannel, make_context
from lightllm.ipc.child import CHANNEL_VARIABLE, RUNTIME_VARIABLE
from lightllm.ipc.rpc import RpcClient
from lightllm.ipc.runtime_dir import RuntimeDir
from lightllm.protocol import codec
from lightllm.protocol.control import Attach, Command, ModelReady, Status
from lightllm.protocol.rounds import JoinRow, Resync, Round, RoundResult, first_seq
from lightllm.sampling_params import SamplingParams


def prefill(seq: int) -> Round:
    """A prompt of three tokens in row `seq`, counted from the first one of its epoch."""
    row = seq % first_seq(1)
    return Round(
        seq=seq, num_decode=0, rows=np.array([row], np.int32), q_len=np.array([3], np.int32), kv_len=np.array([3], np.int32),
        samples=np.ones(1, np.uint8), token_ids=np.full(3, 5, np.int32), slots=np.arange(3, dtype=np.int32) + 3 * row,
        joins=[JoinRow(row, 3, SamplingParams(), seed=1, choice=0, end_token_ids=[2])],
    )  # fmt: skip


class BackendUnderTest:
    """Plays Supervisor and Router for one backend process."""

    def __init__(self, folder: Path, spec: str) -> None:
        self.config = ServerConfig(model_dir=str(make_model_folder(folder / "m")), mock_backend=spec)
        self.runtime = RuntimeDir.create(folder)
        self.runtime.config_file.write_bytes(self.config.to_json())
        self.context = make_context()
        self.epoch = Epoch(self.runtime.begin_epoch())
        results, rounds = self.runtime.round_results, self.runtime.backend_rounds(0)
        self.results = PullChannel(self.context, results, codec.from_backend, self.epoch)
        self.rounds = PushChannel(self.context, rounds, self.epoch)
        self.channel, theirs = socket.socketpair()
        self.channel.settimeout(10)
        self._lines = self.channel.makefile("rb")
        environment = {CHANNEL_VARIABLE: str(theirs.fileno()), RUNTIME_VARIABLE: str(self.runtime.path)}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "lightllm.backend", "--rank", "0"],
            env=os.environ | environment,
            pass_fds=[theirs.fileno()],
        )
        theirs.close()

    def status(self) -> Status:
        return msgspec.json.decode(self._lines.readline(), type=Status)

    def wait_for(self, state: str) -> Status:
        while (status := self.status()).state != state:
            pass
        return status

    def init_model(self) -> ModelReady:
        self.wait_for("loading")
        return self.attach()

    def attach(self) -> ModelReady:
        client = RpcClient(self.runtime.backend_control(0))
        return client.call("attach", Attach(self.epoch.number, 0, self.config.to_json()), ModelReady)

    def result(self) -> RoundResult:
        while (result := self.results.receive()) is None:  # what woke it may be of an earlier epoch
            assert self.results.wait(10_000)
        return result

    def stop(self) -> None:
        """Ends the process by `stop`; the longest round here takes six times as long as it may."""
        self.channel.sendall(msgspec.json.encode(Command("stop")) + b"\n")
        assert self.process.wait(10) == 0

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self._lines.close()
        self.channel.close()
        self.context.destroy(linger=0)
        self.runtime.remove()


@pytest.fixture
def start(tmp_path):
    started = []

    def make(spec: str = "") -> BackendUnderTest:
        started.append(BackendUnderTest(tmp_path, spec))
        return started[-1]

    yield make
    for backend in started:
        backend.close()


def test_a_backend_initialises_runs_rounds_and_stops(start):
    backend = start()
    ready = backend.init_model()
    assert (ready.max_total_token_num, ready.vocab_size) == (1_000_000, VOCAB_SIZE)
    assert set(ready.seconds) == {"import", "mock"}
    assert "waiting for the router" in backend.wait_for("ready").seconds
    for seq in range(3):
        backend.rounds.send(prefill(seq))
    results = [backend.result() for _ in range(3)]
    assert [result.seq for result in results] == [0, 1, 2]
    assert all(len(result.token_ids) == 1 and not result.failed for result in results)
    assert "torch" not in Path(f"/proc/{backend.process.pid}/maps").read_text()
    backend.stop()
    assert backend.wait_for("stopped")


def test_after_a_failure_rounds_are_skipped_until_resync(start):
    backend = start("fail_every=2,fail_oom=1")
    backend.init_model()
    for seq in range(4):
        backend.rounds.send(prefill(seq))
    backend.rounds.send(Resync(7))
    backend.rounds.send(prefill(7))
    results = [backend.result() for _ in range(3)]
    assert [(r.seq, bool(r.failed), r.out_of_memory) for r in results] == [
        (0, False, False), (1, True, True), (7, False, False)
    ]  # fmt: skip


def test_a_later_router_finds_the_model_loaded_and_every_row_free(start):
    """With check=1 the mock refuses a round whose slots a row still reads, and one whose number is not the next."""
    backend = start("check=1")
    ready = backend.init_model()
    backend.rounds.send(prefill(first_seq(1)))
    assert not backend.result().failed
    backend.rounds.send(prefill(first_seq(1) + 1))  # of a Router that is lost now
    backend.epoch.raise_to(backend.runtime.begin_epoch())
    assert backend.attach() == ready
    backend.rounds.send(prefill(first_seq(2)))
    result = backend.result()
    assert (result.seq, result.failed) == (first_seq(2), "")


def test_stop_does_not_wait_for_a_long_round(start):
    backend = start("step_ms=60000")
    backend.init_model()
    backend.rounds.send(prefill(0))
    backend.stop()


def test_stop_ends_a_backend_that_nobody_initialised(start):
    backend = start()
    backend.wait_for("loading")
    backend.stop()


def test_end_of_file_on_the_channel_is_a_stop(start):
    backend = start()
    backend.init_model()
    backend.channel.shutdown(socket.SHUT_RDWR)
    assert backend.process.wait(5) == 0


def test_an_error_of_init_model_is_reported_by_the_backend_itself(start):
    backend = start("vocab_size=100")
    os.remove(Path(backend.config.model_dir) / "config.json")
    backend.wait_for("loading")
    with pytest.raises(EOFError):
        backend.attach()
    assert "config.json" in backend.wait_for("failed").detail
    assert backend.process.wait(5) == 1


class Broken:
    """A backend whose rounds raise."""

    def __init__(self, error: Exception) -> None:
        self.error = error
        self.resynced = -1

    def init_model(self) -> ModelReady:
        raise NotImplementedError

    def submit(self, round: Round) -> Computed:
        if self.resynced >= 0:
            return Computed(RoundResult(round.seq))
        raise self.error

    def fail_round(self, error: Exception, failed: RoundResult) -> RoundResult:
        return failed

    def resync(self, seq: int) -> None:
        self.resynced = seq


def test_an_exception_in_a_round_becomes_a_failed_result():
    backend = Broken(ZeroDivisionError("by zero"))
    runner = RoundRunner(backend)
    runner.submit(prefill(3))
    runner.submit(prefill(4))
    result = runner.take_ready()
    assert (result.seq, result.failed, result.out_of_memory) == (3, "ZeroDivisionError: by zero", False)
    assert runner.take_ready() is None
    runner.submit(Resync(5))
    assert backend.resynced == 5
    runner.submit(prefill(5))
    assert not runner.take_ready().failed


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"), True),
        (RuntimeError("shape mismatch"), False),
    ],
)
def test_out_of_memory_is_told_from_other_errors(error, expected):
    assert is_out_of_memory(error) is expected
