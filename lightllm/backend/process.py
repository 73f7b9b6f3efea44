"""The process around a backend: control calls, the loop over rounds, and what happens when one fails.

rpc threads  attach, start_profile, stop_profile: handed to the main thread, which is woken
main thread  load the model, then: receive a round -> submit it -> send the results that are there
intake thread  matchers for requests that are to come (`constraint_intake`)
watch thread waits for the oldest round on the device, and wakes the main thread when it is done (never on a CPU)
channel thread  stop: wakes the main thread; a round that takes too long is not waited for
"""

from __future__ import annotations

import dataclasses
import functools
import gc
import importlib
import logging
import os
import queue
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Protocol

import msgspec
import zmq

from lightllm.backend.constraint_intake import ConstraintIntake
from lightllm.backend.out_of_memory import is_out_of_memory
from lightllm.backend.pending import Computed, PendingResult
from lightllm.backend.router_link import LocalLink, NodeLink, RouterLink
from lightllm.config import ServerConfig
from lightllm.constraints.grammars import Constraint
from lightllm.distributed.collectives import PeerLost, Superseded
from lightllm.errors import StartupError
from lightllm.ipc.child import Child
from lightllm.ipc.runtime_dir import RuntimeDir
from lightllm.protocol.control import Command, ModelReady, ProfileAnswer, StartProfile
from lightllm.protocol.rounds import Resync, Round, RoundResult, first_seq
from lightllm.weights.freed_memory import keep_freed_memory

log = logging.getLogger("backend")

_STOP_SECONDS = 1.0
"""What a running round gets after `stop` before the process ends under it."""
_WAKE_BYTES = 4096


class Backend(Protocol):
    """What runs rounds: `ModeBackend` or `MockBackend`."""

    def init_model(self, show_bar: bool = False) -> ModelReady: ...

    def prepare_constraint(self, constraint: Constraint, grammar: str) -> Future[Any] | None:
        """Has made what a request with this constraint will need; from any thread. None: it is there."""

    def settle(self, seq: int) -> None:
        """The model is loaded, for a Router whose first round is `seq`."""

    def attach(self, seq: int) -> None:
        """A new Router, whose first round is `seq`: no row is in use. `Superseded`: still another one asks."""

    def submit(self, round: Round) -> PendingResult: ...

    def fail_round(self, error: Exception, failed: RoundResult) -> RoundResult: ...

    def resync(self, seq: int) -> None:
        """After a failed round; the next one is `seq`. `Superseded`: another Router asks."""

    def start_profile(self, rounds: int) -> None:
        """Records the next `rounds` rounds."""

    def stop_profile(self) -> Future[str]:
        """File of the trace, once it is written."""

    def round_done(self) -> None:
        """A round that was submitted is over; called between two rounds."""


class BackendProcess:
    """Loads the model when a Router attaches to it, then runs the rounds of that Router, or of one after it, until `stop`."""

    def __init__(self, child: Child, rank: int, show_bar: bool = False) -> None:
        self._child = child
        self._rank = rank
        self._show_bar = show_bar
        self._intake: ConstraintIntake | None = None
        self._stopping = threading.Event()
        self._wake_reader, self._wake_writer = socket.socketpair()
        self._profiles: queue.SimpleQueue[tuple[StartProfile | None, Future[ProfileAnswer]]] = (
            queue.SimpleQueue()
        )

    def run(self) -> None:
        started = time.monotonic()
        if self._child.config.node_rank:
            self._link: RouterLink = NodeLink(self._child, self._rank, self._wake)
        else:
            self._link = LocalLink(self._child.runtime, self._rank, self._wake, self._ask_for_profile)
        self._child.on_command(self._on_command)
        self._child.beat.beat_in_thread()
        try:
            self._child.report("loading", "importing the model code")
            _import_backend(self._child.config)
            loaded = self._load(time.monotonic() - started)
            if loaded is not None:
                backend, self._ready = loaded
                self._run_rounds(RoundRunner(backend, self._stopping.is_set), backend)
        except StartupError as error:
            self._link.failed(str(error))
            raise
        finally:
            self._link.close()
            if self._intake is not None:
                self._intake.close()

    def _load(self, import_seconds: float) -> tuple[Backend, ModelReady] | None:
        """Waits for a Router to attach, and answers it when the model is loaded; None: `stop` came first. An error is not
        answered: it ends this process, and the Supervisor hears it from here and not from the Router."""
        waited_from = time.monotonic()
        request = self._link.wait_for_attach()
        if request is None:
            return None
        waited = time.monotonic() - waited_from
        config = _with_own_paths(ServerConfig.from_json(request.config_json), self._child.config)
        self._child.report("loading", "loading the model")
        progress = functools.partial(self._child.report, "loading")
        runtime = self._child.runtime
        rank_set = request.rank_set or runtime.rank_set_name(runtime.rank_set)
        backend = _make_backend(config, request.rank, runtime, rank_set, progress, self._link.asked)
        ready = backend.init_model(self._show_bar)
        backend.settle(first_seq(request.epoch))
        gc.collect()
        gc.freeze()  # the model stays: full collections need not walk over it
        keep_freed_memory()
        seconds = {"import": import_seconds, **ready.seconds}
        ready = msgspec.structs.replace(ready, seconds=seconds)
        if request.rank == 0:
            self._intake = ConstraintIntake(runtime, config.httpserver_workers, backend.prepare_constraint)
        few_bits = f", weights {ready.weights}" if ready.weights else ""
        self._child.report(
            "ready",
            f"{ready.max_total_token_num} slots, {ready.dtype}{few_bits} on {ready.device}",
            seconds={"import": import_seconds, "waiting for the router": waited, **ready.seconds},
        )
        self._link.attached(request.epoch, ready)
        return backend, ready

    def _run_rounds(self, runner: "RoundRunner", backend: Backend) -> None:
        poller = zmq.Poller()
        poller.register(self._link.socket, zmq.POLLIN)
        poller.register(self._wake_reader, zmq.POLLIN)
        watch = Watch(self._wake_writer)
        while not self._stopping.is_set():
            message = self._link.receive()
            if message is not None:
                runner.submit(message)
            while (result := runner.take_ready()) is not None:
                self._link.send(result)
                backend.round_done()
            if message is None:
                if runner.oldest is not None:
                    watch.wake_when_ready(runner.oldest)
                if (self._wake_reader.fileno(), zmq.POLLIN) in poller.poll():
                    self._wake_reader.recv(_WAKE_BYTES)
                    self._answer_routers(runner)
                    self._answer_profiles(backend)

    def _answer_routers(self, runner: "RoundRunner") -> None:
        while (request := self._link.take_attach()) is not None:
            if not runner.attach(first_seq(request.epoch)):
                continue
            self._link.attached(request.epoch, self._ready)
            log.info("the router of epoch %d gives the rounds from now on", request.epoch)

    def _answer_profiles(self, backend: Backend) -> None:
        """Between two rounds: a profile is of the thread that starts it."""
        while not self._profiles.empty():
            start, answer = self._profiles.get()
            try:
                if start is not None:
                    backend.start_profile(start.rounds)
                    answer.set_result(ProfileAnswer())
                else:
                    backend.stop_profile().add_done_callback(functools.partial(_answer_trace, answer))
            except Exception as error:  # the caller is told; rounds go on
                answer.set_result(ProfileAnswer(error=str(error)))

    # -- other threads

    def _wake(self) -> None:
        self._wake_writer.send(b"w")

    def _ask_for_profile(self, start: StartProfile | None) -> ProfileAnswer:
        answer: Future[ProfileAnswer] = Future()
        self._profiles.put((start, answer))
        self._wake()
        return answer.result()

    def _on_command(self, command: Command) -> None:
        if command.action == "stop":
            self._stop()

    def _stop(self) -> None:
        if self._stopping.is_set():
            return
        self._stopping.set()
        self._link.stop()
        self._wake()
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

    def __init__(self, backend: Backend, stopping: Callable[[], bool] = lambda: False) -> None:
        """stopping: the process ends; the other ranks may be gone already, which is no news then."""
        self._backend = backend
        self._stopping = stopping
        self._skipping = False
        self._pending: deque[tuple[int, PendingResult]] = deque()

    def submit(self, message: Round | Resync) -> None:
        if isinstance(message, Resync):
            self._go_on(self._backend.resync, message.seq)
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
            pending = Computed(self._failed(message.seq, error))
            self._skipping = True
        self._pending.append((message.seq, pending))

    def attach(self, seq: int) -> bool:
        """A new Router: what the one before it has asked for is void. False: there is another one already."""
        return self._go_on(self._backend.attach, seq)

    def _go_on(self, prepare: Callable[[int], None], seq: int) -> bool:
        """Rounds are computed from number `seq` on; False: this one could not be prepared for them, nor could any rank, because
        another Router asks."""
        self._pending.clear()
        self._skipping = True
        try:
            prepare(seq)
        except Superseded:
            return False
        self._skipping = False
        return True

    @property
    def oldest(self) -> PendingResult | None:
        """The round whose result comes next, if one is under way."""
        return self._pending[0][1] if self._pending else None

    def take_ready(self) -> RoundResult | None:
        """The next result, if it is there. That it is lost is a result too."""
        if not self._pending:
            return None
        try:
            there = self._pending[0][1].ready()
        except (
            Exception
        ):  # a GPU answers every question with the error it is in; `take` meets and contains it
            log.debug("a round failed on the device")
            there = True
        return self.take() if there else None

    def take(self) -> RoundResult:
        """Waits for the next result; there is a round under way."""
        seq, pending = self._pending.popleft()
        try:
            result = pending.result()
        except Exception as error:
            result = self._failed(seq, error)
        if result.failed:
            self._skipping = True
            self._pending.clear()
        return result

    def _failed(self, seq: int, error: Exception) -> RoundResult:
        result = self._backend.fail_round(error, failed_result(seq, error))
        if not self._stopping():
            log.error("round %d failed: %s", seq, result.failed, exc_info=not isinstance(error, PeerLost))
        return result


def _answer_trace(answer: Future[ProfileAnswer], trace: Future[str]) -> None:
    error = trace.exception()
    answer.set_result(
        ProfileAnswer(trace=trace.result())
        if error is None
        else ProfileAnswer(error=f"the trace could not be written: {error}")
    )


def _with_own_paths(config: ServerConfig, own: ServerConfig) -> ServerConfig:
    """Node 0's options, but for what belongs to this machine."""
    return dataclasses.replace(
        config,
        model_dir=own.model_dir,
        node_rank=own.node_rank,
        cpu_threads=own.cpu_threads,
        cluster_secret_file=own.cluster_secret_file,
    )


def failed_result(seq: int, error: Exception) -> RoundResult:
    """What the Router is told about an exception in a round."""
    reason = f"{type(error).__name__}: {error}"
    return RoundResult(seq, failed=reason, out_of_memory=is_out_of_memory(error))


def _import_backend(config: ServerConfig) -> None:
    """Imports the code that this config needs (torch takes more than a second, and only the real backend wants it)."""
    importlib.import_module(f"lightllm.backend.{'mode_backend' if config.mock_backend is None else 'mock'}")


def _make_backend(
    config: ServerConfig,
    rank: int,
    runtime: RuntimeDir,
    rank_set: str,
    progress: Callable[[str], None],
    superseded: Callable[[], bool],
) -> Backend:
    if config.mock_backend is not None:
        from lightllm.backend.mock import MockBackend

        return MockBackend(config, progress)
    from lightllm.backend.encoders_beside import encoders_beside
    from lightllm.backend.image_embeddings import ImageEmbeddings
    from lightllm.backend.mode_backend import ModeBackend
    from lightllm.backend.ranks import make_rendezvous

    rendezvous = make_rendezvous(config, rank, runtime.ranks_file, rank_set, superseded)
    embeddings = ImageEmbeddings(runtime.images_dir)
    encoders = functools.partial(encoders_beside, config, runtime)
    return ModeBackend(
        config, rank, config.tp, progress, rendezvous, embeddings=embeddings, encoders=encoders
    )
