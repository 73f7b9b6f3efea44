"""The Router's main loop: messages in, rounds out, one thread. Sleeps while there is nothing to do.

A turn: take results and requests, send the backends their next round (they wait for it), then the other processes.
"""

from __future__ import annotations

import dataclasses
import logging
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

import msgspec
import zmq

from lightllm.errors import BackendFailed, RequestError
from lightllm.ipc.beats import BEAT_SECONDS, Beat
from lightllm.ipc.channels import PullChannel, PushChannel
from lightllm.ipc.kv_map import KvMapWriter
from lightllm.ipc.snapshot import SnapshotWriter
from lightllm.protocol import codec
from lightllm.protocol.messages import (
    AbortRequest,
    Accepted,
    AddRequest,
    FlushCache,
    Flushed,
    Refused,
    RoundTokens,
    WorkerStarted,
    worker_of,
)
from lightllm.router.due import Due
from lightllm.router.kv_events import KvEventPublisher
from lightllm.router.remote_ranks import RemoteRank, RemoteRanks
from lightllm.router.round_pump import RoundPump
from lightllm.router.scheduler import InvariantError, Scheduler
from lightllm.router.stats import StatsLine

INTAKE_PER_TURN = 256
"""Messages taken before the backends get their next round."""
SNAPSHOT_SECONDS = 0.02
"""Between two snapshots of a server that works: each foretells the peak of memory."""
CHECK_SECONDS = 10.0
"""Between two checks of the books, which look at every slot: tens of milliseconds for millions of them."""

HEARING_SECONDS = 10.0
"""Whatever has to go on is known by then: Http Servers send it at once, but one may just be started again itself."""

logger = logging.getLogger("router")


@dataclasses.dataclass(eq=False)
class RouterLoop:
    """Drives a `Scheduler` between its sockets."""

    scheduler: Scheduler
    _intake: PullChannel
    _results: PullChannel
    _detokenizer: PushChannel
    _workers: Sequence[PushChannel]
    _backends: Sequence[PushChannel | RemoteRank]
    _snapshots: SnapshotWriter
    _beat: Beat
    _vocab_size: int
    _stats: StatsLine | None
    _kv_map: KvMapWriter | None = None
    _kv_events: KvEventPublisher | None = None
    breaches: int = 0
    """How often the books were found wrong."""
    _pending: list[RoundTokens] = dataclasses.field(default_factory=list)
    _last_snapshot: float = 0.0
    _due: Due = dataclasses.field(default_factory=Due)
    _first_ids: dict[int, int] = dataclasses.field(default_factory=dict)
    """Http worker -> first request id of its present life."""
    _begun: float = dataclasses.field(default_factory=time.monotonic)
    _unpublished: bool = True
    _unchecked: bool = False
    _last_check: float = float("-inf")

    def __post_init__(self) -> None:
        self._pump = RoundPump(self.scheduler, self._to_backends)

    def run(self, stopping: threading.Event, wake: socket.socket, remote: RemoteRanks | None = None) -> None:
        """Until `stopping` is set; a byte on `wake` ends a sleep. Raises `RankLost` when one of `remote` is."""
        poller = zmq.Poller()
        for source in (self._intake.socket, self._results.socket, wake, *(remote.sockets if remote else ())):
            poller.register(source, zmq.POLLIN)
        if self._kv_events is not None:
            poller.register(self._kv_events.replays, zmq.POLLIN)
        while not stopping.is_set():
            self.turn()
            poller.poll(int(BEAT_SECONDS * 1000))  # at once where something has come: cheaper than to look
            if remote is not None:
                remote.check()

    def turn(self) -> bool:
        """One turn; False if nothing happened."""
        busy = self._take_results()
        busy |= self._take_intake()
        busy |= self._pump.fill(time.monotonic())
        self._publish(busy)  # before the tokens: a client that has its last token sees the server empty
        self._send_tokens()
        if self._kv_events is not None:
            self._kv_events.turn()
        return busy

    def _take_results(self) -> bool:
        taken = False
        for result, _ in _received(self._results, "round result"):
            taken = True
            tokens = self._pump.take(result)
            if tokens is not None:
                self._pending.append(tokens)
        if taken:
            self._due.round_came(time.monotonic())
        return taken

    def _take_intake(self) -> bool:
        taken = False
        for message, data in islice(_received(self._intake, "request"), INTAKE_PER_TURN):
            taken = True
            if isinstance(message, AbortRequest):
                self.scheduler.abort(message.request_id, message.reason)
            elif isinstance(message, FlushCache):
                self._flush(message)
            elif isinstance(message, WorkerStarted):
                self._worker_started(message)
            else:
                self._add(message, data)
        return taken

    def _add(self, message: AddRequest, data: bytes) -> None:
        ids = [choice.request_id for choice in message.choices]
        if not ids or not 0 <= worker_of(ids[0]) < len(self._workers):
            logger.error("dropped a request of an unknown Http worker: %s", ids)
            return
        if ids[0] < self._first_ids.get(worker_of(ids[0]), 0):
            return  # it was on its way when its Http Server ended
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
            self._detokenizer.send_bytes(data)
            answer = Accepted(ids)
        self._workers[worker_of(ids[0])].send(answer)

    def _worker_started(self, message: WorkerStarted) -> None:
        worker = worker_of(message.first_id)
        self._first_ids[worker] = message.first_id
        if aborted := self.scheduler.abort_former(message.first_id):
            logger.warning(
                "http-%d is another process: %d requests of the one before it end", worker, aborted
            )

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
            self._detokenizer.send(tokens)
        self._pending.clear()

    def _publish(self, busy: bool) -> None:
        """Snapshot, statistics, and the check of the books while nothing runs."""
        now = time.monotonic()
        empty = not self.scheduler.has_work
        self._due.work(not empty or self.scheduler.in_flight > 0, now)
        self._unpublished |= busy
        self._unchecked |= busy
        elapsed = now - self._last_snapshot
        wanted = self._unpublished and (empty or elapsed >= SNAPSHOT_SECONDS)
        if wanted or elapsed >= BEAT_SECONDS:
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
        if now - self._begun < HEARING_SECONDS:
            state.unheard = len(self._workers) - len(self._first_ids)
        else:
            state.unheard = 0
        self._beat.beat()
        state.round_due_since = self._due.round_since
        self._snapshots.write(state)
        self._last_snapshot = now
        self._unpublished = False
        if self._kv_map is not None and self._kv_map.due(now):
            self._kv_map.write(self.scheduler.kv_map(now))
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


def _received(channel: PullChannel, kind: str) -> Iterator[tuple[Any, bytes]]:
    """The messages that have come, with their bytes; malformed ones are dropped."""
    while (data := channel.receive_bytes()) is not None:
        try:
            message = channel.decode(data)
        except msgspec.MsgspecError as error:
            logger.error("dropped a malformed %s: %s", kind, error)
            continue
        yield message, data
