"""The Router's main loop: messages in, rounds out, one thread. Sleeps while there is nothing to do.

A turn: take results and requests, send the backends their next round (they wait for it), then the other processes.
"""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Sequence
from typing import Protocol

import msgspec
import zmq

from lightllm.errors import BackendFailed, RequestError
from lightllm.ipc.channels import PullChannel, PushChannel
from lightllm.ipc.snapshot import SnapshotWriter
from lightllm.protocol import codec
from lightllm.protocol.messages import (
    AbortRequest,
    Accepted,
    AddRequest,
    Echo,
    FlushCache,
    Flushed,
    Refused,
    RoundTokens,
    worker_of,
)
from lightllm.router.due import Due
from lightllm.router.remote_ranks import RemoteRanks
from lightllm.router.round_pump import RoundPump
from lightllm.router.scheduler import InvariantError, Scheduler
from lightllm.router.stats import StatsLine

INTAKE_PER_TURN = 256
"""Messages taken before the backends get their next round."""
SNAPSHOT_SECONDS = 0.005
HEARTBEAT_SECONDS = 1.0
CHECK_SECONDS = 10.0
"""Between two checks of the books, which look at every slot: tens of milliseconds for millions of them."""

logger = logging.getLogger("router")


class Stopping(Protocol):
    def is_set(self) -> bool: ...


class RoundSender(Protocol):
    """The way to one rank: a `PushChannel`, or a rank of another node."""

    def send_bytes(self, data: bytes) -> None: ...


class RouterLoop:
    """Drives a `Scheduler` between its sockets."""

    def __init__(
        self,
        scheduler: Scheduler,
        intake: PullChannel,
        results: PullChannel,
        detokenizer: PushChannel,
        workers: Sequence[PushChannel],
        backends: Sequence[RoundSender],
        snapshots: SnapshotWriter,
        vocab_size: int,
        stats_interval: float | None,
    ) -> None:
        self.scheduler = scheduler
        self.breaches = 0
        """How often the books were found wrong."""
        self._pump = RoundPump(scheduler, self._to_backends)
        self._intake = intake
        self._results = results
        self._detokenizer = detokenizer
        self._workers = workers
        self._backends = backends
        self._snapshots = snapshots
        self._vocab_size = vocab_size
        self._stats = None if stats_interval is None else StatsLine(stats_interval, time.monotonic())
        self._pending: list[RoundTokens] = []
        self._last_snapshot = 0.0
        self._due = Due()
        self._unpublished = True
        self._unchecked = False
        self._last_check = float("-inf")

    def run(self, stopping: Stopping, wake: socket.socket, remote: RemoteRanks | None = None) -> None:
        """Until `stopping` is set; a byte on `wake` ends a sleep. Raises `StartupError` when one of `remote` is lost."""
        poller = zmq.Poller()
        for source in (self._intake.socket, self._results.socket, wake, *(remote.sockets if remote else ())):
            poller.register(source, zmq.POLLIN)
        while not stopping.is_set():
            if not self.turn():
                poller.poll(int(HEARTBEAT_SECONDS * 1000))
                if remote is not None:
                    remote.check()

    def turn(self) -> bool:
        """One turn; False if nothing happened."""
        busy = self._take_results()
        busy |= self._take_intake()
        busy |= self._pump.fill(time.monotonic())
        self._publish(busy)  # before the tokens: a client that has its last token sees the server empty
        self._send_tokens()
        return busy

    def _take_results(self) -> bool:
        taken = False
        while (data := self._results.receive_bytes()) is not None:
            taken = True
            try:
                result = self._results.decode(data)
            except msgspec.MsgspecError as error:
                logger.error("dropped a malformed round result: %s", error)
                continue
            tokens = self._pump.take(result)
            if tokens is not None:
                self._pending.append(tokens)
        if taken:
            self._due.round_came(time.monotonic())
        return taken

    def _take_intake(self) -> bool:
        for count in range(INTAKE_PER_TURN):
            data = self._intake.receive_bytes()
            if data is None:
                return count > 0
            try:
                message = self._intake.decode(data)
            except msgspec.MsgspecError as error:
                logger.error("dropped a malformed request: %s", error)
                continue
            if isinstance(message, AbortRequest):
                self.scheduler.abort(message.request_id, message.reason)
            elif isinstance(message, FlushCache):
                self._flush(message)
            elif isinstance(message, Echo):
                self._due.echo_came(message)
            else:
                self._add(message, data)
        return True

    def _add(self, message: AddRequest, data: bytes) -> None:
        ids = [choice.request_id for choice in message.choices]
        if not ids or not 0 <= worker_of(ids[0]) < len(self._workers):
            logger.error("dropped a request of an unknown Http worker: %s", ids)
            return
        answer: Accepted | Refused
        try:
            self.scheduler.add(message, time.monotonic())
        except RequestError as error:
            answer = Refused(ids, type(error).__name__, error.message, error.param, error.retry_after)
        except Exception:  # whatever is odd about one request ends it alone
            logger.exception("request %d could not be taken in", ids[0])
            answer = Refused(
                ids, BackendFailed.__name__, "the router could not take in this request; its log says why"
            )
        else:
            self._to_detokenizer(data)
            answer = Accepted(ids)
        self._workers[worker_of(ids[0])].send(answer)

    def _flush(self, message: FlushCache) -> None:
        if not 0 <= message.worker < len(self._workers):
            logger.error("dropped a flush of an unknown Http worker: %d", message.worker)
            return
        tokens = self.scheduler.flush_cache()
        logger.info("the prefix cache was flushed: %d tokens", tokens)
        self._workers[message.worker].send(Flushed(message.ticket, tokens))

    def _to_backends(self, message: msgspec.Struct) -> None:
        data = codec.encode(message)
        for backend in self._backends:
            backend.send_bytes(data)

    def _send_tokens(self) -> None:
        tokens = self.scheduler.drain_outputs()
        if tokens is not None:
            self._pending.append(tokens)
        for tokens in self._pending:
            self._to_detokenizer(codec.encode(tokens))
        self._pending.clear()

    def _to_detokenizer(self, data: bytes) -> None:
        self._detokenizer.send_bytes(data)
        self._due.text_sent()

    def _publish(self, busy: bool) -> None:
        """Snapshot, statistics, and the check of the books while nothing runs."""
        now = time.monotonic()
        empty = not self.scheduler.has_work
        self._due.work(not empty or self.scheduler.in_flight > 0, now)
        self._unpublished |= busy
        self._unchecked |= busy
        elapsed = now - self._last_snapshot
        wanted = self._unpublished and (empty or elapsed >= SNAPSHOT_SECONDS)
        if wanted or elapsed >= HEARTBEAT_SECONDS:
            self.publish(now)
        idle = empty and not self.scheduler.in_flight and not busy
        if idle and self._unchecked and now - self._last_check >= CHECK_SECONDS:
            self._unchecked = False
            self._last_check = now
            self._check_books()

    def publish(self, now: float) -> None:
        """Writes the snapshot, and the statistics line when it is due."""
        state = self.scheduler.snapshot()
        state.ready = 1
        state.vocab_size = self._vocab_size
        echo = self._due.next_echo(now)
        if echo is not None:
            self._detokenizer.send(echo)
        state.heartbeat = now
        state.round_due_since = self._due.round_since
        state.text_due_since = self._due.text_since
        self._snapshots.write(state)
        self._last_snapshot = now
        self._unpublished = False
        if self._stats is not None and self._stats.due(now):
            self._stats.log(state, now)

    def _check_books(self) -> None:
        try:
            self.scheduler.check_invariants()
        except InvariantError as error:
            self.breaches += 1
            logger.error(
                "token memory was inconsistent and has been reset (breach %d): %s", self.breaches, error
            )
            self.scheduler.repair()
