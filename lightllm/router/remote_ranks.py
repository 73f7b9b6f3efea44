"""The Model Backends of other nodes, as node 0's Router sees them: one authenticated connection each.

They come by themselves: the Router waits until all have said `RankHello`, compares what they would run with its own, and
then treats them like the ranks of its machine, but for the way its messages take. They outlive it, and come to the next
one. A rank that is lost ends the server.
"""

from __future__ import annotations

import dataclasses
import logging
import threading
import time
from collections.abc import Callable

import msgspec
import zmq

from lightllm import __version__
from lightllm.config import ServerConfig
from lightllm.errors import NodeLost
from lightllm.ipc.nodes import NodeKeys, NodeListener, node_address, read_secret
from lightllm.protocol import codec
from lightllm.protocol.control import Attach, ModelReady
from lightllm.protocol.nodes import Goodbye, RankFailed, RankHello, RankReady, Refusal, StartRank
from lightllm.weights.fingerprint import model_fingerprint

_POLL_SECONDS = 0.1
_PROBE = b""
"""A frame that says nothing: sending it tells whether the connection is there."""
_PROBE_SECONDS = 3.0
"""A connection is known to have ended a moment before sending to it fails."""
_LAST_WORDS_SECONDS = 0.5
"""What was said last leaves before the socket closes."""

logger = logging.getLogger("router")


@dataclasses.dataclass
class RemoteRank:
    """One rank of another node. `send_bytes` is what `PushChannel` has."""

    hello: RankHello
    connection: bytes
    listener: NodeListener
    ready: ModelReady | None = None

    def __str__(self) -> str:
        return f"tensor parallel rank {self.hello.rank} (node {self.hello.node_rank}, {self.hello.host})"

    def send_bytes(self, data: bytes) -> None:
        """Raises `NodeLost`."""
        if not self.listener.send(self.connection, data):
            raise NodeLost(f"Lost {self}.", "See the log of that node.")


class RemoteRanks:
    """All of them. Used by one thread at a time."""

    def __init__(
        self,
        context: zmq.Context,
        config: ServerConfig,
        server: str,
        loaded: bool,
        on_wait: Callable[[], None],
    ) -> None:
        """Listens at once. server: a name of this launch; loaded: the ranks have been attached to another Router of it;
        on_wait: called again and again while this object waits. Raises `InvalidOption`."""
        self._config = config
        self._server = server
        self._loaded = loaded
        self._on_wait = on_wait
        self._epoch = 0
        self._expected = range(config.tp // config.nnodes, config.tp)
        self._ranks: dict[int, RemoteRank] = {}
        self._refused = 0
        self._probe_until = 0.0
        assert config.model_dir is not None
        self._model = model_fingerprint(config.model_dir)
        self._listener = NodeListener(context, node_address(config), NodeKeys.derive(read_secret(config)))

    @property
    def ranks(self) -> list[RemoteRank]:
        """In their order."""
        return [self._ranks[rank] for rank in sorted(self._ranks)]

    @property
    def sockets(self) -> list[zmq.Socket]:
        """For a poller: something for `check`."""
        return [self._listener.socket, self._listener.monitor]

    def wait_for_all(self, stopping: threading.Event, report: Callable[[str], None]) -> bool:
        """Until every rank is there; False: `stopping` was set before. Raises `NodeLost` after --nodes_timeout
        seconds, and at once when a node would run something else."""
        deadline = time.monotonic() + self._config.nodes_timeout
        came = -1
        while not self._complete:
            if stopping.is_set():
                return False
            if time.monotonic() >= deadline:
                raise NodeLost(self._why_late(), "See the logs of those nodes.")
            if came != len(self._ranks):
                came = len(self._ranks)
                report(f"waiting for {self._missing()}")
            self._wait()
        return True

    def start(self, attach: Callable[[int], Attach]) -> None:
        """Has every rank load the model, unless it has done so for a Router before. attach: the request to a rank."""
        for rank, remote in self._ranks.items():
            request = attach(rank)
            self._epoch = request.epoch
            remote.ready = None
            remote.send_bytes(codec.encode(StartRank(request)))

    def wait_until_ready(self, stopping: threading.Event) -> list[ModelReady] | None:
        """What all ranks have answered; None: `stopping` was set before. Raises `NodeLost`."""
        while not stopping.is_set():
            answers = [remote.ready for remote in self.ranks if remote.ready is not None]
            if len(answers) == len(self._expected):
                return answers
            self._wait()
        return None

    @property
    def _complete(self) -> bool:
        return len(self._ranks) == len(self._expected)

    def check(self) -> None:
        """Takes what has come. Raises `NodeLost` that names a rank that has failed or is gone."""
        while (received := self._listener.receive()) is not None:
            connection, message = received[0], self._decode(received[1])
            remote = next(
                (remote for remote in self._ranks.values() if remote.connection == connection), None
            )
            if remote is not None and isinstance(message, RankFailed):
                raise NodeLost(f"{remote} failed: {message.reason}")
            if remote is not None and isinstance(message, RankReady) and message.epoch == self._epoch:
                remote.ready = message.ready
            if remote is None and isinstance(message, RankHello):
                self._welcome(connection, message)
        refused, ended = self._listener.events()
        if refused and not self._refused:
            logger.warning(
                "refused a connection to %s: it does not know the cluster secret", node_address(self._config)
            )
        self._refused += refused
        if ended:
            self._probe_until = time.monotonic() + _PROBE_SECONDS
        if time.monotonic() < self._probe_until:
            for remote in self._ranks.values():
                remote.send_bytes(_PROBE)

    def close(self, stops: bool) -> None:
        """stops: the server does, and the other nodes are told so. Else they wait for another Router."""
        if stops:
            for remote in self._ranks.values():
                self._listener.send(remote.connection, codec.encode(Goodbye()))
            time.sleep(_LAST_WORDS_SECONDS)
        self._listener.close()

    def _welcome(self, connection: bytes, hello: RankHello) -> None:
        problem = self._difference(hello)
        if problem:
            self._listener.send(connection, codec.encode(Refusal(problem)))
            if not self._complete:
                raise NodeLost(problem)
            logger.warning("refused a node that came too late: %s", problem)
            return
        self._ranks[hello.rank] = RemoteRank(hello, connection, self._listener)
        logger.info("%s has joined", self._ranks[hello.rank])

    def _difference(self, hello: RankHello) -> str:
        """Why this rank cannot take part; empty if it can."""
        config, who = self._config, f"node {hello.node_rank} ({hello.host})"
        for name, theirs, ours in (
            ("lightllm", hello.version, __version__),
            ("--nnodes", hello.nnodes, config.nnodes),
            ("--tp", hello.tp, config.tp),
        ):
            if theirs != ours:
                return f"The nodes are unequal: {who} has {name} {theirs}, node 0 has {ours}."
        if hello.server != (self._server if self._loaded else ""):
            return f"{who} and node 0 were not started together: start all nodes again."
        if hello.rank in self._ranks:
            return f"Two nodes claim tensor parallel rank {hello.rank}: each needs its own --node_rank."
        if hello.rank not in self._expected:
            return f"{who} claims tensor parallel rank {hello.rank}, which is node 0's or none."
        if hello.model != self._model:
            return f"The nodes are unequal: the model folder of {who} differs from node 0's (config.json or weight files)."
        return ""

    def _wait(self) -> None:
        """For something to `check`, and that."""
        self._on_wait()
        zmq.select(self.sockets, [], [], _POLL_SECONDS)
        self.check()

    def _missing(self) -> str:
        missing = [rank for rank in self._expected if rank not in self._ranks]
        nodes = sorted({rank // (self._config.tp // self._config.nnodes) for rank in missing})
        return f"tensor parallel ranks {', '.join(map(str, missing))} (nodes {', '.join(map(str, nodes))})"

    def _why_late(self) -> str:
        reason = f"Within {self._config.nodes_timeout:.0f} s there came no {self._missing()}."
        if self._refused:
            reason += f" {self._refused} connections were refused: they did not know the cluster secret."
        return reason

    @staticmethod
    def _decode(data: bytes) -> RankHello | RankReady | RankFailed | None:
        try:
            return codec.from_rank.decode(data)
        except msgspec.MsgspecError as error:
            logger.error("dropped a malformed message of another node: %s", error)
            return None
