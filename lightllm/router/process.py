"""The Router process: brings the backends up, computes the limits, then runs the loop until it is told to stop."""

from __future__ import annotations

import contextlib
import gc
import logging
import queue
import socket
import threading
import time

from lightllm.errors import StartupError
from lightllm.ipc.channels import Epoch, PullChannel, PushChannel, make_context
from lightllm.ipc.child import Child
from lightllm.ipc.rpc import RpcError, call_when_there
from lightllm.ipc.snapshot import SnapshotWriter
from lightllm.model_folder.config import eos_token_ids
from lightllm.model_folder.lengths import context_length
from lightllm.protocol import codec
from lightllm.protocol.control import Attach, Command, ModelReady
from lightllm.protocol.messages import Hello
from lightllm.router.loop import RouterLoop
from lightllm.router.remote_ranks import RemoteRanks
from lightllm.router.scheduler import Scheduler
from lightllm.router.scheduler_config import resolve
from lightllm.router.stats import StatsLine

_REMOTE_POLL_SECONDS = 0.1
_BACKEND_GONE_SECONDS = 5.0
"""How long a lost backend may take to tell the Supervisor why, before the Router reports the loss itself."""

logger = logging.getLogger("router")


def run_router(child: Child) -> None:
    """The main of the Router process; returns when it is told to stop."""
    RouterProcess(child).run()


class RouterProcess:
    def __init__(self, child: Child) -> None:
        self._child = child
        self._stopping = threading.Event()
        self._wake_reader, self._wake_writer = socket.socketpair()
        self._answers: queue.SimpleQueue[ModelReady | Exception | None] = queue.SimpleQueue()

    def run(self) -> None:
        config, runtime = self._child.config, self._child.runtime
        self._child.on_command(self._on_command)
        snapshots = SnapshotWriter(runtime.snapshot_file)
        context = make_context()
        self._epoch = epoch = Epoch(runtime.begin_epoch())
        intake = PullChannel(context, runtime.router_intake, codec.to_router, epoch)
        results = PullChannel(context, runtime.round_results, codec.from_backend, epoch)
        detokenizer = PushChannel(context, runtime.detokenizer_intake, epoch)
        workers = [
            PushChannel(context, runtime.http_results(i), epoch) for i in range(config.httpserver_workers)
        ]
        backends = [PushChannel(context, runtime.backend_rounds(rank), epoch) for rank in config.node_ranks]
        with contextlib.ExitStack() as closing:
            remote = RemoteRanks(context, config) if config.nnodes > 1 else None
            if remote is not None:
                closing.callback(remote.close)
            started = time.monotonic()
            ready = self._attach_backends(remote)
            if ready is not None:
                senders = [*backends, *(remote.ranks if remote is not None else ())]
                scheduler = self._make_scheduler(ready)
                loop = RouterLoop(
                    scheduler, intake, results, detokenizer, workers, senders, snapshots, ready.vocab_size,
                    None if config.disable_log_stats else StatsLine(config.log_stats_interval, time.monotonic()),
                )  # fmt: skip
                detokenizer.send(Hello(epoch.number))
                loop.publish(time.monotonic())
                self._settle_garbage_collector()
                self._child.report(
                    "ready",
                    f"{scheduler.config.max_total_token_num} slots, {scheduler.config.max_rows} rows",
                    seconds={"waiting for the model backend": time.monotonic() - started},
                )
                loop.run(self._stopping, self._wake_reader, remote)
        channels: list[PullChannel | PushChannel] = [intake, results, detokenizer, *workers, *backends]
        for channel in channels:
            channel.close()

    def _on_command(self, command: Command) -> None:
        """In the channel's thread. Draining is the Http Servers' business: what they pass on is still served."""
        if command.action == "stop":
            self._stopping.set()
            self._answers.put(None)
            self._wake_writer.send(b"\0")

    def _attach_backends(self, remote: RemoteRanks | None) -> ModelReady | None:
        """Attaches to every rank, which loads the model unless it has done so for a Router before; None: `stop` came first.
        Raises `StartupError`."""
        config = self._child.config
        self._child.report("loading", "waiting for the model backend")
        if remote is not None:
            if not remote.wait_for_all(self._stopping, lambda detail: self._child.report("loading", detail)):
                return None
            remote.start(self._attach_request)
        for rank in config.node_ranks:
            threading.Thread(
                target=self._attach_rank, args=(rank,), name=f"attach-{rank}", daemon=True
            ).start()
        answers: list[ModelReady] = []
        while len(answers) < len(config.node_ranks):
            try:
                answer = self._answers.get(timeout=None if remote is None else _REMOTE_POLL_SECONDS)
            except queue.Empty:
                assert remote is not None
                remote.check()
                continue
            if answer is None:
                return None
            if isinstance(answer, Exception):
                if self._stopping.wait(_BACKEND_GONE_SECONDS):
                    return None
                raise StartupError(
                    f"A model backend failed while it loaded the model: {answer}", "See its log lines."
                )
            answers.append(answer)
        if remote is not None:
            if (theirs := remote.wait_until_ready(self._stopping)) is None:
                return None
            answers += theirs
        slots = {answer.max_total_token_num for answer in answers}
        if len(slots) > 1:
            raise StartupError(f"The model backends disagree on the number of KV slots: {sorted(slots)}.")
        return answers[0]

    def _attach_request(self, rank: int) -> Attach:
        return Attach(self._epoch.number, rank, self._child.config.to_json())

    def _attach_rank(self, rank: int) -> None:
        """In a thread of its own. The Supervisor watches over the time that all this takes."""
        path = self._child.runtime.backend_control(rank)
        try:
            request = self._attach_request(rank)
            self._answers.put(call_when_there(path, "attach", request, ModelReady, self._stopping))
        except (RpcError, EOFError, OSError) as error:
            self._answers.put(error)

    def _make_scheduler(self, ready: ModelReady) -> Scheduler:
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
        return Scheduler(scheduling, epoch=self._epoch.number)

    @staticmethod
    def _settle_garbage_collector() -> None:
        """What exists now stays; the loop makes few cycles, so collections can be rare."""
        gc.collect()
        gc.freeze()
        gc.set_threshold(50_000, 20, 1_000)
