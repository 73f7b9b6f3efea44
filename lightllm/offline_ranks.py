"""The ranks of an offline `LLM` with `tp` above 1: the Model Backends of a server, which get the same rounds; rank 0 answers.

They are started, attached to and talked to as a Router and a Supervisor do; the process of the `LLM` is both.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import selectors
import threading
import time
from concurrent.futures import ThreadPoolExecutor

from lightllm.config import ServerConfig
from lightllm.errors import BackendFailed, StartupError
from lightllm.ipc.channels import Epoch, PullChannel, PushChannel, make_context
from lightllm.ipc.rpc import call_when_there
from lightllm.ipc.runtime_dir import RuntimeDir
from lightllm.protocol import codec
from lightllm.protocol.control import Attach, Command, ModelReady
from lightllm.protocol.rounds import Resync, Round, RoundResult
from lightllm.server.child_process import ChildProcess, find_cause
from lightllm.server.plan import plan_backends

_END_SECONDS = 2.0
"""What a rank gets to end on its own."""
_LOOK_SECONDS = 0.05
"""Between two looks whether a rank has ended or has loaded the model: its channel tells of either a moment before."""


class OfflineRanks:
    """To the engine what a `RoundRunner` is with one rank: takes on rounds and gives their results, in order."""

    def __init__(self, config: ServerConfig, runtime: RuntimeDir, show_bar: bool) -> None:
        """Starts the processes, which load the model; runtime: stays the caller's. Raises `StartupError`."""
        config = dataclasses.replace(config, log_level="warning")
        self._config = config
        self._stopping = threading.Event()
        self._runtime = runtime
        self._selector = selectors.DefaultSelector()
        self._processes: list[ChildProcess] = []
        # A child dies with the thread that started it: these live as long as the `LLM`, its caller's may not.
        self._threads = ThreadPoolExecutor(config.tp, "ranks")
        self._context, epoch = make_context(), Epoch(0)
        self._results = PullChannel(self._context, self._runtime.round_results, codec.from_backend, epoch)
        self._selector.register(self._results.socket.FD, selectors.EVENT_READ, lambda: None)
        self._rounds = [
            PushChannel(self._context, self._runtime.backend_rounds(rank), epoch)
            for rank in config.node_ranks
        ]
        try:
            self._runtime.write_config(config.to_json())
            for rank, spec in enumerate(plan_backends(config)):
                if show_bar and rank == 0:
                    spec = dataclasses.replace(spec, arguments=(*spec.arguments, "--show_bar"))
                arguments = (spec, str(self._runtime.path), self._selector, _to_standard_error)
                self._processes.append(self._threads.submit(ChildProcess, *arguments).result())
            self.ready = self._attach()
        except BaseException:
            self.close()
            raise

    def submit(self, message: Round | Resync) -> None:
        data = codec.encode(message)
        for rounds in self._rounds:
            rounds.send_bytes(data)

    def take(self) -> RoundResult:
        """Waits for the next result. Raises `BackendFailed` when a rank has ended."""
        while (result := self._results.receive()) is None:
            self._turn(_LOOK_SECONDS)
            if lost := self._lost():
                raise BackendFailed(lost)
        return result

    def close(self) -> None:
        """Ends the processes."""
        self._stopping.set()
        for process in self._processes:
            process.send(Command(action="stop"))
        deadline = time.monotonic() + _END_SECONDS
        while any(process.running for process in self._processes) and time.monotonic() < deadline:
            self._turn(_LOOK_SECONDS)
        for process in self._processes:
            process.kill()
            process.wait()
            process.close()
        self._context.destroy(linger=0)
        self._selector.close()
        self._threads.shutdown()

    def _attach(self) -> ModelReady:
        """Has every rank load the model; what rank 0 answers."""
        answers = [self._threads.submit(self._attach_rank, rank) for rank in self._config.node_ranks]
        while True:
            self._turn(_LOOK_SECONDS)
            if lost := self._lost():
                raise StartupError(lost)
            ready = [found for answer in answers if answer.done() and (found := answer.result())]
            if len(ready) == len(answers):
                return ready[0]

    def _attach_rank(self, rank: int) -> ModelReady | None:
        """In a thread. None: the rank has ended."""
        request = Attach(0, rank, self._config.to_json())
        path = self._runtime.backend_control(rank)
        try:
            return call_when_there(path, "attach", request, ModelReady, self._stopping)
        except (EOFError, OSError):
            return None

    def _turn(self, timeout: float) -> None:
        """Takes in what the ranks say, and passes on what they write."""
        for key, _ in self._selector.select(timeout):
            key.data()
        for process in self._processes:
            process.reap()

    def _lost(self) -> str:
        """Why a rank cannot go on; "" if all can."""
        cause = find_cause(self._processes)
        if cause is None:
            return ""
        if cause.failure:
            return f"{cause.failure.detail} {cause.failure.remedy}".strip()
        return f"tensor parallel rank {self._processes.index(cause)} has ended; what it wrote says why"


def _to_standard_error(data: bytes) -> None:
    with contextlib.suppress(OSError):
        os.write(2, data)
