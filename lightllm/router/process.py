"""The Router process: brings the backends up, computes the limits, then runs the loop until it is told to stop."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import gc
import logging
import queue
import socket
import threading
import time

import zmq

from lightllm.errors import NodeLost, StartupError
from lightllm.ipc.channels import Epoch, PullChannel, PushChannel, make_context
from lightllm.ipc.child import Child
from lightllm.ipc.kv_map import KvMapWriter
from lightllm.ipc.rpc import RpcError, call_when_there
from lightllm.ipc.snapshot import Snapshot, SnapshotWriter
from lightllm.model_folder.config import eos_token_ids
from lightllm.model_folder.lengths import context_length
from lightllm.protocol import codec
from lightllm.protocol.control import Attach, Command, ModelReady
from lightllm.protocol.messages import Hello
from lightllm.router.kv_events import KvEventPublisher
from lightllm.router.loop import RouterLoop
from lightllm.router.remote_ranks import RankLost, RemoteRanks
from lightllm.router.scheduler import Scheduler
from lightllm.router.scheduler_config import resolve
from lightllm.router.stats import StatsLine

_POLL_SECONDS = 0.1
_NOT_READY_SECONDS = 1.0
"""When attaching takes longer, the model is being loaded: new requests are refused meanwhile. In a shorter pause they wait."""
_BACKEND_GONE_SECONDS = 5.0
"""How long a lost backend may take to tell the Supervisor why, before the Router reports the loss itself."""

logger = logging.getLogger("router")


def run_router(child: Child) -> None:
    """The main of the Router process; returns when it is told to stop."""
    RouterProcess(child).run()


@dataclasses.dataclass(frozen=True)
class _Channels:
    """Those that outlive a life."""

    context: zmq.Context
    epoch: Epoch
    intake: PullChannel
    results: PullChannel
    workers: list[PushChannel]


class _Life:
    """From an attachment to the Model Backends until there are others, or until the end."""

    def __init__(self) -> None:
        self.over = threading.Event()
        self.answers: queue.SimpleQueue[ModelReady | Exception | None] = queue.SimpleQueue()
        """Of the ranks; None: it is over."""

    def end(self) -> None:
        self.over.set()
        self.answers.put(None)


class RouterProcess:
    """One life after another: each begins a new epoch, in which nothing of the one before it counts."""

    def __init__(self, child: Child) -> None:
        self._child = child
        self._stopping = threading.Event()
        self._life = _Life()
        self._stop = Command("stop")
        """How it is told to stop."""
        self._wake_reader, self._wake_writer = socket.socketpair()
        self._kv_events: KvEventPublisher | None = None

    def run(self) -> None:
        config, runtime = self._child.config, self._child.runtime
        self._child.on_command(self._on_command)
        self._snapshots = SnapshotWriter(runtime.snapshot_file)
        self._kv_map = KvMapWriter(runtime.kv_map_file)
        context = make_context()
        epoch = Epoch(runtime.epoch)
        intake = PullChannel(context, runtime.router_intake, codec.to_router, epoch)
        results = PullChannel(context, runtime.round_results, codec.from_backend, epoch)
        workers = [
            PushChannel(context, runtime.http_results(i), epoch) for i in range(config.httpserver_workers)
        ]
        with contextlib.ExitStack() as closing:
            sockets: list[PullChannel | PushChannel] = [intake, results, *workers]
            for channel in sockets:
                closing.callback(channel.close)
            if config.kv_events is not None:
                self._kv_events = KvEventPublisher(context, config.kv_events, config.kv_events_token_ids)
                closing.callback(self._kv_events.close)
            channels = _Channels(context, epoch, intake, results, workers)
            remote = None
            if config.nnodes > 1:
                remote = RemoteRanks(context, config, runtime, self._on_wait)
                closing.push(functools.partial(self._close, remote))
            while not self._stopping.is_set():
                self._life = life = _Life()
                if self._stopping.is_set():  # said to the one before
                    break
                _drain(self._wake_reader)
                self._epoch = runtime.begin_epoch()
                epoch.raise_to(self._epoch)
                self._attaching_since = time.monotonic()
                try:
                    self._live(life, channels, remote)
                except RankLost as lost:
                    assert remote is not None
                    self._wait_for_others(life, remote, str(lost))

    def _live(self, life: _Life, channels: _Channels, remote: RemoteRanks | None) -> None:
        """Until this life is over. Raises `RankLost`: the ranks of all nodes are to be others."""
        config, runtime = self._child.config, self._child.runtime
        ready = self._attach_backends(life, remote)
        if ready is None:
            return
        with contextlib.ExitStack() as closing:
            # Connections of its own: what is sent over one to a process that is gone would be lost.
            detokenizer, *backends = (
                PushChannel(channels.context, address, channels.epoch)
                for address in (runtime.detokenizer_intake, *map(runtime.backend_rounds, config.node_ranks))
            )
            for sender in (detokenizer, *backends):
                closing.callback(sender.close)
            senders = [*backends, *(remote.ranks if remote is not None else ())]
            scheduler = self._make_scheduler(ready, self._snapshots.counts())
            if self._kv_events is not None:
                self._kv_events.attach(scheduler)
            loop = RouterLoop(
                scheduler, channels.intake, channels.results, detokenizer, channels.workers, senders, self._snapshots,
                self._child.beat, ready.vocab_size,
                None if config.disable_log_stats else StatsLine(config.log_stats_interval, time.monotonic()),
                self._kv_map, self._kv_events,
            )  # fmt: skip
            detokenizer.send(Hello(self._epoch))
            loop.publish(time.monotonic())
            self._settle_garbage_collector()
            self._child.report(
                "ready",
                f"{scheduler.config.max_total_token_num} slots, {scheduler.config.max_rows} rows",
                seconds={"waiting for the model backend": time.monotonic() - self._attaching_since},
            )
            loop.run(life.over, self._wake_reader, remote)

    def _wait_for_others(self, life: _Life, remote: RemoteRanks, lost: str) -> None:
        """Ranks of another node are lost: the Supervisor starts those of node 0 again, or ends the server."""
        remote.break_set(lost)
        self._child.report("loading", lost, broken_set=remote.set_number)
        self._attaching_since = time.monotonic()
        while not life.over.wait(_POLL_SECONDS):
            self._on_wait()
            remote.check()

    def _on_command(self, command: Command) -> None:
        """In the channel's thread. Draining is the Http Servers' business: what they pass on is still served."""
        if command.action == "stop":
            self._stop = command
            self._stopping.set()
        if command.action in ("stop", "attach"):
            self._life.end()
            self._wake_writer.send(b"\0")

    def _attach_backends(self, life: _Life, remote: RemoteRanks | None) -> ModelReady | None:
        """Attaches to every rank, which loads the model unless it has done so for a Router before; None: the life ended
        first. Raises `StartupError`."""
        config = self._child.config
        self._child.report("loading", "waiting for the model backend")
        if remote is not None:
            remote.begin()
        if (
            remote is None or remote.started
        ):  # first: a rank that waits for the others amid a round lets go of them
            self._attach_node_0(life)
        if remote is not None:
            if not remote.wait_for_all(life.over, lambda detail: self._child.report("loading", detail)):
                return None
            if not remote.started:  # now: they wait for each other no longer than --nodes_timeout
                self._attach_node_0(life)
            remote.start(self._attach_request)
        answers: list[ModelReady] = []
        while len(answers) < len(config.node_ranks):
            try:
                answer = life.answers.get(timeout=_POLL_SECONDS)
            except queue.Empty:
                self._on_wait()
                if remote is not None:
                    remote.check()
                continue
            if answer is None:
                return None
            if isinstance(answer, Exception):
                if life.over.wait(_BACKEND_GONE_SECONDS):
                    return None
                raise StartupError(
                    f"A model backend failed while it loaded the model: {answer}", "See its log lines."
                )
            answers.append(answer)
        if remote is not None:
            if (theirs := remote.wait_until_ready(life.over)) is None:
                return None
            answers += theirs
        slots = {answer.max_total_token_num for answer in answers}
        if len(slots) > 1:
            raise StartupError(f"The model backends disagree on the number of KV slots: {sorted(slots)}.")
        return answers[0]

    def _on_wait(self) -> None:
        """Again and again while it attaches."""
        self._child.beat.beat()
        if time.monotonic() - self._attaching_since > _NOT_READY_SECONDS:
            self._snapshots.write(self._snapshots.counts())

    def _attach_request(self, rank: int) -> Attach:
        return Attach(self._epoch, rank, self._child.config.to_json())

    def _attach_node_0(self, life: _Life) -> None:
        for rank in self._child.config.node_ranks:
            threading.Thread(
                target=self._attach_rank, args=(life, rank), name=f"attach-{rank}", daemon=True
            ).start()

    def _attach_rank(self, life: _Life, rank: int) -> None:
        """In a thread of its own. The Supervisor watches over the time that all this takes. A rank that has ended is started
        again, or the Supervisor ends this life."""
        path = self._child.runtime.backend_control(rank)
        request = self._attach_request(rank)
        while not life.over.is_set():
            try:
                life.answers.put(call_when_there(path, "attach", request, ModelReady, life.over))
                return
            except RpcError as error:
                life.answers.put(error)
                return
            except (EOFError, OSError) as error:
                logger.debug("rank %d has gone: %s", rank, error)

    def _make_scheduler(self, ready: ModelReady, counts: Snapshot) -> Scheduler:
        config = self._child.config
        if config.model_dir is None:
            raise StartupError(
                "The model folder was not resolved.", "Start the server with its launch command."
            )
        scheduling = resolve(
            config,
            ready.max_total_token_num,
            ready.device,
            context_length(config.model_dir),
            eos_token_ids(config.model_dir, config.eos_id),
            ready.decode_tokens,
        )
        logger.info(
            "%d KV slots on %s, requests of up to %d tokens, rounds of up to %d with prefill chunks of %d",
            scheduling.max_total_token_num, ready.device, scheduling.max_req_total_len, scheduling.batch_max_tokens,
            scheduling.chunked_prefill_size,
        )  # fmt: skip
        return Scheduler(scheduling, epoch=self._epoch, counts=counts)

    def _close(
        self,
        remote: RemoteRanks,
        kind: type[BaseException] | None,
        error: BaseException | None,
        *trace: object,
    ) -> None:
        """After an unexpected error another Router takes this one's place, and where the Supervisor is gone, that of another
        launch may."""
        if isinstance(error, NodeLost):
            remote.close(True, str(error))
        else:
            remote.close(kind is None and not self._stop.lost, self._stop.reason)

    @staticmethod
    def _settle_garbage_collector() -> None:
        """What exists now stays; the loop makes few cycles, so collections can be rare."""
        gc.collect()
        gc.freeze()
        gc.set_threshold(50_000, 20, 1_000)


def _drain(reader: socket.socket) -> None:
    with contextlib.suppress(BlockingIOError):
        reader.recv(4096, socket.MSG_DONTWAIT)
