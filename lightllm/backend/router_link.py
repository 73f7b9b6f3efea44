"""The ways between a Model Backend and the Router: sockets of this machine, or one authenticated connection to node 0."""

from __future__ import annotations

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
import zmq

from lightllm import __version__
from lightllm.errors import StartupError
from lightllm.ipc.channels import Epoch, PullChannel, PushChannel, make_context
from lightllm.ipc.child import Child
from lightllm.ipc.nodes import NodeConnection, NodeKeys, node_address, read_secret
from lightllm.ipc.rpc import RpcServer
from lightllm.ipc.runtime_dir import RuntimeDir
from lightllm.protocol import codec
from lightllm.protocol.control import Attach, ModelReady, ProfileAnswer, StartProfile
from lightllm.protocol.nodes import RankFailed, RankHello, RankReady, Refusal, StartRank
from lightllm.protocol.rounds import Resync, Round, RoundResult
from lightllm.weights.fingerprint import model_fingerprint

logger = logging.getLogger("backend")

_ATTACH = codec.Decoder(Attach)
_START_PROFILE = codec.Decoder(StartProfile)
_POLL_MS = 200
_REFUSALS = 3
"""Handshakes that may fail before node 0 counts as having another secret: it may just be starting."""
_LAST_WORDS_SECONDS = 0.5
"""What was said last leaves before the process ends."""


class RouterLink(Protocol):
    """What a backend's main thread needs of the Router. `socket` becomes readable when `receive` has something."""

    socket: zmq.Socket

    def wait_for_attach(self) -> Attach | None:
        """The first Router's request to be attached to; None: `stop` was called before. Raises `StartupError`."""

    def asked(self) -> bool:
        """Whether there may be something for `take_attach`."""

    def take_attach(self) -> Attach | None:
        """The request of another Router, the latest one; None if there is none."""

    def attached(self, epoch: int, ready: ModelReady) -> None:
        """Answers the requests that were taken: rounds are those of this epoch from now on."""

    def receive(self) -> Round | Resync | None:
        """The next message; None if there is none now."""

    def send(self, result: RoundResult) -> None:
        """Rank 0's results reach the Router; those of others go nowhere."""

    def failed(self, reason: str) -> None:
        """This backend cannot go on. Where the Supervisor of the Router's machine sees that, nothing is sent."""

    def stop(self) -> None:
        """Ends `wait_for_attach`; from any thread."""

    def close(self) -> None: ...


class LocalLink:
    """ZMQ over sockets of the runtime folder for rounds and results, rpyc for control."""

    def __init__(
        self,
        runtime: RuntimeDir,
        rank: int,
        wake: Callable[[], None],
        profile: Callable[[StartProfile | None], ProfileAnswer],
    ) -> None:
        """wake: there is something for `take_attach`; profile: starts or (None) ends a profile. Both are called in threads of
        the rpc server."""
        context = make_context()
        self._epoch = Epoch(runtime.epoch)
        self._rounds = PullChannel(context, runtime.backend_rounds(rank), codec.to_backend, self._epoch)
        self.socket = self._rounds.socket
        self._results = None if rank else PushChannel(context, runtime.round_results, self._epoch)
        self._requests: queue.SimpleQueue[tuple[Attach, Future[bytes]] | None] = queue.SimpleQueue()
        self._answers: list[Future[bytes]] = []
        """Of requests that were taken."""
        self._newest = -1
        """Epoch of the latest Router that has asked."""
        self._asking = threading.Lock()
        self._wake = wake
        handlers: dict[str, Callable[[bytes], bytes]] = {
            "attach": self._handle_attach,
            "start_profile": lambda payload: codec.encode(profile(_START_PROFILE.decode(payload))),
            "stop_profile": lambda payload: codec.encode(profile(None)),
        }
        self._server = RpcServer(runtime.backend_control(rank), handlers)

    def wait_for_attach(self) -> Attach | None:
        asked = self._requests.get()
        if asked is None:
            return None
        request, answer = asked
        self._answers.append(answer)
        return request

    def asked(self) -> bool:
        return not self._requests.empty()

    def take_attach(self) -> Attach | None:
        latest: Attach | None = None
        while self.asked() and (request := self.wait_for_attach()) is not None:
            latest = request
        return latest

    def attached(self, epoch: int, ready: ModelReady) -> None:
        self._epoch.raise_to(epoch)
        for answer in self._answers:
            answer.set_result(codec.encode(ready))
        self._answers.clear()

    def receive(self) -> Round | Resync | None:
        return self._rounds.receive()

    def send(self, result: RoundResult) -> None:
        if self._results is not None:
            self._results.send(result)

    def failed(self, reason: str) -> None:
        pass

    def stop(self) -> None:
        self._requests.put(None)

    def close(self) -> None:
        self._server.close()
        self._rounds.close()
        if self._results is not None:
            self._results.close(linger_ms=100)

    def _handle_attach(self, payload: bytes) -> bytes:
        """In a thread of the rpc server. The request of a Router that is gone may come behind that of the next."""
        request = _ATTACH.decode(payload)
        answer: Future[bytes] = Future()
        with self._asking:
            if request.epoch <= self._newest:
                raise ValueError("another Router has asked since")
            self._newest = request.epoch
            self._requests.put((request, answer))
        self._wake()
        return answer.result()


class NodeLink:
    """The connection of a rank on another node. Node 0's end of it is `router.remote_ranks`. When it ends, another Router is
    awaited: for how long is a matter of this node's Supervisor (`server.node_watch`)."""

    def __init__(self, child: Child, rank: int, wake: Callable[[], None]) -> None:
        """wake: there is something for `take_attach`."""
        config = child.config
        assert config.model_dir is not None
        self._node_0 = f"node 0 at {node_address(config)}"
        self._timeout = config.nodes_timeout
        self._wake = wake
        self._attaches: deque[Attach] = deque()
        self._messages: deque[Round | Resync] = deque()
        self._greet = threading.Event()
        """A Router that comes must be told that this rank is there."""
        self._stopping = threading.Event()
        self._ended = threading.Event()
        self._watcher = threading.Thread(target=self._watch, name="node-0", daemon=True)
        self._connection = NodeConnection(
            make_context(), node_address(config), NodeKeys.derive(read_secret(config))
        )
        self.socket = self._connection.socket
        self._hello = RankHello(
            rank=rank, node_rank=config.node_rank, host=socket.gethostname(), version=__version__,
            nnodes=config.nnodes, tp=config.tp, model=model_fingerprint(config.model_dir), pid=os.getpid(),
        )  # fmt: skip
        self._connection.send(codec.encode(self._hello))

    def wait_for_attach(self) -> Attach | None:
        poller = zmq.Poller()
        for source in (self._connection.socket, self._connection.monitor):
            poller.register(source, zmq.POLLIN)
        deadline = time.monotonic() + self._timeout
        refused = 0
        while not self._stopping.is_set():
            poller.poll(_POLL_MS)
            if (data := self._connection.receive()) is not None:
                message = codec.to_rank.decode(data)
                if isinstance(message, StartRank):
                    self._hello = msgspec.structs.replace(self._hello, rank_set=message.attach.rank_set)
                    self._watcher.start()
                    return message.attach
                if isinstance(message, Refusal):
                    raise StartupError(message.reason)
            refusals, ended = self._connection.events()
            if ended:
                self._connection.send(codec.encode(self._hello))  # to the Router that comes
            refused += refusals
            if refused >= _REFUSALS:
                raise StartupError(
                    f"{self._node_0} refused this node: its cluster secret differs, or something else listens there.",
                    "Give every node the same secret, --nccl_host and --nccl_port.",
                )
            if time.monotonic() >= deadline and not self._connection.connected:
                raise StartupError(
                    f"{self._node_0} did not answer within {self._timeout:.0f} s.",
                    "Is it running, and does --nccl_host name it?",
                )
        return None

    def asked(self) -> bool:
        self._read()
        return bool(self._attaches)

    def take_attach(self) -> Attach | None:
        latest: Attach | None = None
        while self.asked():
            latest = self._attaches.popleft()
        return latest

    def attached(self, epoch: int, ready: ModelReady) -> None:
        self._connection.send(codec.encode(RankReady(ready, epoch)))

    def receive(self) -> Round | Resync | None:
        self._read()
        return self._messages.popleft() if self._messages else None

    def _read(self) -> None:
        """Takes in what has come, and greets a new Router. Raises `StartupError` where that one does not want it."""
        if self._greet.is_set():
            self._greet.clear()
            self._connection.send(codec.encode(self._hello))
        while (data := self._connection.receive()) is not None:
            message = codec.to_rank.decode(data)
            if isinstance(message, Round | Resync):
                self._messages.append(message)
            elif isinstance(message, StartRank):
                self._messages.clear()
                self._attaches.append(message.attach)
                self._wake()
            else:
                raise StartupError(message.reason)

    def send(self, result: RoundResult) -> None:
        pass

    def failed(self, reason: str) -> None:
        self._connection.send(codec.encode(RankFailed(reason)))
        time.sleep(_LAST_WORDS_SECONDS)

    def stop(self) -> None:
        self._stopping.set()

    def close(self) -> None:
        self._ended.set()
        if self._watcher.is_alive():
            self._watcher.join()
        self._connection.close()

    def _watch(self) -> None:
        """In a thread: when the Router is lost, the next one is to be greeted."""
        while not self._ended.is_set():
            if self._connection.monitor.poll(_POLL_MS) and self._connection.events()[1]:
                self._greet.set()
                self._wake()
