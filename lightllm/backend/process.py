"""The process around a backend: control calls, the loop over rounds, and what happens when one fails.

rpc thread   init_model (handed to the main thread), health
main thread  init_model, then: receive a round -> submit it -> send the results that are there
watch thread waits for the oldest round on the device, and wakes the main thread when it is done (never on a CPU)
channel thread  stop: wakes the main thread; a round that takes too long is not waited for
"""

from __future__ import annotations

import gc
import logging
import os
import queue
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Protocol

import msgspec
import numpy as np
import zmq

from lightllm.backend.out_of_memory import is_out_of_memory
from lightllm.backend.pending import Computed, PendingResult
from lightllm.config import ServerConfig
from lightllm.ipc.channels import PullChannel, PushChannel, make_context
from lightllm.ipc.child import Child
from lightllm.ipc.rpc import RpcServer
from lightllm.protocol import codec
from lightllm.protocol.arrays import EMPTY_INT32
from lightllm.protocol.control import Command, InitModel, ModelReady
from lightllm.protocol.rounds import Resync, Round, RoundResult

log = logging.getLogger("backend")

_STOP_SECONDS = 1.0
"""What a running round gets after `stop` before the process ends under it."""
_WAKE_BYTES = 4096


class Backend(Protocol):
    """What runs rounds: `ModeBackend` or `MockBackend`."""

    def init_model(self) -> ModelReady: ...

    def submit(self, round: Round) -> PendingResult: ...

    def resync(self, seq: int) -> None: ...


def run_backend(child: Child, rank: int) -> None:
    """The main of a backend process."""
    BackendProcess(child, rank).run()


class BackendProcess:
    """Initialises a backend when the Router asks for it, then runs its rounds until `stop`."""

    def __init__(self, child: Child, rank: int) -> None:
        self._child = child
        self._rank = rank
        self._stopping = threading.Event()
        self._requests: queue.SimpleQueue[tuple[InitModel, Future[bytes]] | None] = queue.SimpleQueue()
        self._wake_reader, self._wake_writer = socket.socketpair()
        self._rounds_done = 0

    def run(self) -> None:
        self._child.on_command(self._on_command)
        started = time.monotonic()
        context = make_context()
        rounds = PullChannel(context, self._child.runtime.backend_rounds(self._rank), codec.to_backend)
        results = None
        if self._rank == 0:
            results = PushChannel(context, self._child.runtime.round_results)
        handlers: dict[str, Callable[[bytes], bytes]] = {
            "init_model": self._handle_init_model,
            "health": self._handle_health,
        }
        server = RpcServer(self._child.runtime.backend_control(self._rank), handlers)
        self._child.report("loading", "importing the model code")
        make_backend = _backend_factory(self._child.config)
        imported = time.monotonic()
        backend = self._init_model(make_backend, imported - started)
        if backend is not None:
            self._run_rounds(rounds, RoundRunner(backend), results)
        server.close()
        rounds.close()
        if results is not None:
            results.close(linger_ms=100)

    def _init_model(
        self,
        make_backend: Callable[[ServerConfig, int, int, Callable[[str], None]], Backend],
        import_seconds: float,
    ) -> Backend | None:
        """Waits for the Router's `init_model` and answers it; None: `stop` came first. An error is not answered: it
        ends this process, and the Supervisor hears it from here and not from the Router."""
        waited_from = time.monotonic()
        asked = self._requests.get()
        if asked is None:
            return None
        request, answer = asked
        waited = time.monotonic() - waited_from
        config = ServerConfig.from_json(request.config_json)
        self._child.report("loading", "loading the model")
        backend = make_backend(
            config, request.rank, request.world_size, lambda detail: self._child.report("loading", detail)
        )
        ready = backend.init_model()
        gc.collect()
        gc.freeze()  # the model stays: full collections need not walk over it
        seconds = {"import": import_seconds, **ready.seconds}
        ready = msgspec.structs.replace(ready, seconds=seconds)
        self._child.report(
            "ready",
            f"{ready.max_total_token_num} slots, {ready.dtype} on {ready.device}",
            seconds={"import": import_seconds, "waiting for the router": waited, **ready.seconds},
        )
        answer.set_result(codec.encode(ready))
        return backend

    def _run_rounds(self, rounds: PullChannel, runner: "RoundRunner", results: PushChannel | None) -> None:
        poller = zmq.Poller()
        poller.register(rounds.socket, zmq.POLLIN)
        poller.register(self._wake_reader, zmq.POLLIN)
        watch = Watch(self._wake_writer)
        while not self._stopping.is_set():
            message = rounds.receive()
            if message is not None:
                runner.submit(message)
            while (result := runner.take_ready()) is not None:
                self._rounds_done += 1
                if results is not None:
                    results.send(result)
            if message is None:
                if runner.oldest is not None:
                    watch.wake_when_ready(runner.oldest)
                if (self._wake_reader.fileno(), zmq.POLLIN) in poller.poll():
                    self._wake_reader.recv(_WAKE_BYTES)

    # -- other threads

    def _handle_init_model(self, payload: bytes) -> bytes:
        request = codec.make_decoder(InitModel).decode(payload)
        answer: Future[bytes] = Future()
        self._requests.put((request, answer))
        return answer.result()

    def _handle_health(self, payload: bytes) -> bytes:
        return msgspec.msgpack.encode({"rounds": self._rounds_done})

    def _on_command(self, command: Command) -> None:
        if command.action != "stop" or self._stopping.is_set():
            return
        self._stopping.set()
        self._requests.put(None)
        self._wake_writer.send(b"s")
        threading.Thread(target=self._end_anyway, name="stop", daemon=True).start()

    def _end_anyway(self) -> None:
        """A round, or the loading of a model, must not hold up the stop."""
        time.sleep(_STOP_SECONDS)
        log.debug("ending in the middle of the work")
        self._child.report("stopped")
        os._exit(0)


class Watch:
    """Writes a byte when a round is done, so that the main thread can sleep on its sockets meanwhile. The thread exists
    only once there is something to wait for."""

    def __init__(self, wake: socket.socket) -> None:
        self._wake = wake
        self._rounds: queue.SimpleQueue[PendingResult] = queue.SimpleQueue()
        self._watched: PendingResult | None = None
        self._thread: threading.Thread | None = None

    def wake_when_ready(self, pending: PendingResult) -> None:
        if pending is self._watched:
            return
        self._watched = pending
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="watch", daemon=True)
            self._thread.start()
        self._rounds.put(pending)

    def _run(self) -> None:
        while True:
            try:
                self._rounds.get().wait()
            except Exception:  # `result` will raise it in the main thread, which reports it
                log.debug("a round failed on the device")
            self._wake.send(b"r")


class RoundRunner:
    """Submits rounds, hands out their results in order and contains their errors: after a failure every round is
    skipped until `Resync`, those included that had been submitted already."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._skipping = False
        self._pending: deque[tuple[int, PendingResult]] = deque()

    def submit(self, message: Round | Resync) -> None:
        if isinstance(message, Resync):
            self._pending.clear()
            self._backend.resync(message.seq)
            self._skipping = False
            return
        if self._skipping:
            return
        try:
            pending = self._backend.submit(message)
            if pending.ready():
                result = pending.result()
                self._skipping = bool(result.failed)
                pending = Computed(result)
        except Exception as error:  # whatever a model raises ends this round, not the process
            log.exception("round %d failed", message.seq)
            pending = Computed(failed_result(message.seq, error))
            self._skipping = True
        self._pending.append((message.seq, pending))

    @property
    def oldest(self) -> PendingResult | None:
        """The round whose result comes next, if one is under way."""
        return self._pending[0][1] if self._pending else None

    def take_ready(self) -> RoundResult | None:
        """The next result, if it is there."""
        return self.take() if self._pending and self._pending[0][1].ready() else None

    def take(self) -> RoundResult:
        """Waits for the next result; there is a round under way."""
        seq, pending = self._pending.popleft()
        try:
            result = pending.result()
        except Exception as error:
            log.exception("round %d failed", seq)
            result = failed_result(seq, error)
        if result.failed:
            self._skipping = True
            self._pending.clear()
        return result


def failed_result(seq: int, error: Exception) -> RoundResult:
    """What the Router is told about an exception in a round."""
    return RoundResult(
        seq=seq,
        token_ids=EMPTY_INT32,
        logprobs=np.zeros(0, np.float32),
        failed=f"{type(error).__name__}: {error}",
        out_of_memory=is_out_of_memory(error),
    )


def _backend_factory(
    config: ServerConfig,
) -> Callable[[ServerConfig, int, int, Callable[[str], None]], Backend]:
    """Imports the code that this config needs (torch takes more than a second, and only the real backend wants it)."""
    if config.mock_backend is not None:
        from lightllm.backend.mock import MockBackend

        return lambda config, rank, world_size, progress: MockBackend(config, progress)
    from lightllm.backend.mode_backend import ModeBackend

    return ModeBackend
