"""The Model Backends of other nodes, as node 0's Router sees them: one authenticated connection each.

They come by themselves, and say `RankHello`. What they would run is compared with what node 0 runs; then they are treated like
the ranks of its machine, but for the way their messages take. They outlive a Router, and come to the next one.

Ranks are started for each other, those of all nodes as one set, and a rank that is lost breaks it: `RankLost`. Then all are
started again; each set has a name, so that no rank of one is ever taken for a rank of another:

    says hello, and has been started for no set ----> fresh --StartRank, when all are there-->  of the set
    for the present set, by a Router before this one ----------------------------------------->  of the set
    for another one --------> its node is told to end it, and to start it again: it comes as a fresh one
"""

from __future__ import annotations

import dataclasses
import logging
import threading
import time
from collections.abc import Callable, Sequence

import msgspec
import zmq

from lightllm import __version__
from lightllm.config import ServerConfig
from lightllm.errors import LightLLMError, NodeLost
from lightllm.ipc.nodes import PROBE, NodeKeys, NodeListener, node_address, read_secret
from lightllm.ipc.runtime_dir import RuntimeDir
from lightllm.protocol import codec
from lightllm.protocol.control import Attach, ModelReady
from lightllm.protocol.nodes import (
    FromNodes,
    NodeFailed,
    NodeHello,
    RankFailed,
    RankHello,
    RankReady,
    Refusal,
    StartRank,
)
from lightllm.router.remote_nodes import RemoteNodes
from lightllm.weights.fingerprint import model_fingerprint

_POLL_SECONDS = 0.1
_PROBE_SECONDS = 3.0
"""A connection is known to have ended a moment before sending to it fails."""
_LAST_WORDS_SECONDS = 0.5
"""What was said last leaves before the socket closes."""

logger = logging.getLogger("router")


class RankLost(LightLLMError):
    """The set of ranks has lost one on another node: all are to be started again."""


@dataclasses.dataclass
class RemoteRank:
    """One rank of another node. `send_bytes` is what `PushChannel` has."""

    hello: RankHello
    connection: bytes
    listener: NodeListener
    ready: ModelReady | None = None

    def __str__(self) -> str:
        return f"tensor parallel rank {self.hello.rank} (node {self.hello.node_rank}, {self.hello.host})"

    @property
    def there(self) -> bool:
        return self.listener.send(self.connection, PROBE)

    def send_bytes(self, data: bytes) -> None:
        """Raises `RankLost`."""
        if not self.listener.send(self.connection, data):
            raise RankLost(f"lost {self}")


class RemoteRanks:
    """All of them. Used by one thread at a time."""

    def __init__(
        self, context: zmq.Context, config: ServerConfig, runtime: RuntimeDir, on_wait: Callable[[], None]
    ) -> None:
        """Listens at once. on_wait: called again and again while this object waits. Raises `InvalidOption`."""
        self._config = config
        self._runtime = runtime
        self._on_wait = on_wait
        self._served = runtime.epoch > 0
        """The server has been ready: one that fits not does not end it any more, and one that is late was lost."""
        self._epoch = 0
        self._expected = range(config.tp // config.nnodes, config.tp)
        self.set_number = -1
        """Of the present set."""
        self.started = False
        """Whether its ranks have been told to meet each other, by this Router or one before."""
        self._broken = ""
        """Why it is of no use any more."""
        self._why = ""
        """Why the set before this one was of no use any more."""
        self._ranks: dict[int, RemoteRank] = {}
        """Of the present set, once that is started."""
        self._fresh: dict[int, RemoteRank] = {}
        self._refused = 0
        self._probe_until = 0.0
        assert config.model_dir is not None
        self._model = model_fingerprint(config.model_dir)
        self._listener = NodeListener(context, node_address(config), NodeKeys.derive(read_secret(config)))
        self._nodes = RemoteNodes(self._listener)

    @property
    def ranks(self) -> list[RemoteRank]:
        """Of the present set, in their order."""
        return [self._ranks[rank] for rank in sorted(self._ranks)]

    @property
    def sockets(self) -> list[zmq.Socket]:
        """For a poller: something for `check`."""
        return [self._listener.socket, self._listener.monitor]

    def begin(self) -> None:
        """To be called in each new epoch. The ranks of node 0 may be others than before; then those of other nodes are to be
        others too."""
        if self._runtime.rank_set != self.set_number:
            if self.started:
                self.break_set("a rank of node 0 has ended")
            self.set_number = self._runtime.rank_set
            self._why, self._broken = self._broken, ""
            self.started = self._runtime.started_set == self.set_number

    def break_set(self, reason: str) -> None:
        """The present set is of no use any more: what runs of it on other nodes is started again."""
        self._broken = self._broken or reason
        for remote in self._ranks.values():
            self._nodes.end(remote.hello, self._broken)
        self._ranks.clear()

    def wait_for_all(self, stopping: threading.Event, report: Callable[[str], None]) -> bool:
        """Until every rank and every launch is there; False: `stopping` was set before. Raises `RankLost`; `NodeLost` when a node
        has not been there for --nodes_timeout seconds, and before the server has served, at once when one would run something
        else."""
        if self._broken:
            raise RankLost(self._broken)
        deadline = time.monotonic() + self._config.nodes_timeout
        said = ""
        while (missing := self._missing()) or self._away():
            if stopping.is_set():
                return False
            nodes = {self._node_of(rank) for rank in missing}
            if nodes and not nodes & self._away():  # their launches watch over them
                deadline = time.monotonic() + self._config.nodes_timeout
            if time.monotonic() >= deadline:
                raise NodeLost(self._why_late(missing), "See the logs of those nodes.")
            if (awaited := self._awaited(missing)) != said:
                said = awaited
                report(said)
            self._wait()
        return True

    def start(self, attach: Callable[[int], Attach]) -> None:
        """Has every rank load the model, unless it has done so for a Router before. attach: the request to a rank. Raises
        `RankLost`."""
        if not self.started:
            self._runtime.note_started_set(self.set_number)
            self.started = True
            self._ranks, self._fresh = self._fresh, {}
        name = self._runtime.rank_set_name(self.set_number)
        for rank, remote in self._ranks.items():
            request = msgspec.structs.replace(attach(rank), rank_set=name)
            self._epoch = request.epoch
            remote.ready = None
            remote.send_bytes(codec.encode(StartRank(request)))

    def wait_until_ready(self, stopping: threading.Event) -> list[ModelReady] | None:
        """What all ranks have answered; None: `stopping` was set before. Raises `RankLost`."""
        while not stopping.is_set():
            answers = [remote.ready for remote in self.ranks if remote.ready is not None]
            if len(answers) == len(self._expected):
                self._served = True
                return answers
            self._wait()
        return None

    def check(self) -> None:
        """Takes what has come. Raises `RankLost` when the set is broken and was not before, `NodeLost` when the server cannot
        go on."""
        loss = ""
        while (received := self._listener.receive()) is not None:
            message = self._decode(received[1])
            if message is not None:
                loss = loss or self._take(received[0], message)
        refused, ended = self._listener.events()
        if refused and not self._refused:
            logger.warning(
                "refused a connection to %s: it does not know the cluster secret", node_address(self._config)
            )
        self._refused += refused
        if ended:
            self._probe_until = time.monotonic() + _PROBE_SECONDS
        if time.monotonic() < self._probe_until:
            loss = loss or self._find_lost()
        if loss and not self._broken:
            raise RankLost(loss)

    def close(self, stops: bool, reason: str = "") -> None:
        """stops: the server does, or fails for this reason, and the other nodes are told so. Else they wait for another
        Router."""
        if stops:
            self._nodes.say_goodbye(reason)
            time.sleep(_LAST_WORDS_SECONDS)
        self._listener.close()

    # -- what has come

    def _take(self, connection: bytes, message: FromNodes) -> str:
        """Not empty: why the set is broken."""
        remote = next((r for r in self._ranks.values() if r.connection == connection), None)
        if isinstance(message, NodeHello):
            self._nodes.came(connection, message)
        elif isinstance(message, NodeFailed):
            name = self._nodes.name_at(connection)
            raise NodeLost(f"{name} has given up: {message.reason}", "See its log.")
        elif isinstance(message, RankHello):
            if remote is None and connection not in [fresh.connection for fresh in self._fresh.values()]:
                return self._welcome(RemoteRank(message, connection, self._listener))
        elif remote is not None and isinstance(message, RankFailed):
            return f"{remote} failed: {message.reason}"
        elif remote is not None and isinstance(message, RankReady) and message.epoch == self._epoch:
            remote.ready = message.ready
        return ""

    def _welcome(self, remote: RemoteRank) -> str:
        """Not empty: why the set is broken."""
        hello = remote.hello
        if problem := self._difference(hello):
            self._listener.send(remote.connection, codec.encode(Refusal(problem)))
            if not self._served:
                raise NodeLost(problem)
            logger.warning("refused a rank: %s", problem)
            return ""
        present = self._ranks.get(hello.rank)
        if hello.rank_set:
            if self._broken or hello.rank_set != self._runtime.rank_set_name(self.set_number):
                self._nodes.end(hello, self._broken or "it was started for ranks that are no more")
                return ""
            self._ranks[hello.rank] = remote
            logger.info("%s has joined", remote)
            return f"lost the connection of {remote}" if present is not None else ""
        self._nodes.is_new(hello)
        if (former := self._fresh.get(hello.rank)) is not None:
            reason = f"Another process is tensor parallel rank {hello.rank} now."
            self._listener.send(former.connection, codec.encode(Refusal(reason)))
        self._fresh[hello.rank] = remote
        logger.info("%s has joined", remote)
        if not self.started or self._broken:
            return ""
        if present is None or not present.there:
            return f"{remote} was started again"
        logger.warning("%s is there twice: the other one takes its place when it ends", present)
        return ""

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
        former = self._ranks.get(hello.rank) or self._fresh.get(hello.rank)
        if not self._served and former is not None and former.there:
            return f"Two nodes claim tensor parallel rank {hello.rank}: each needs its own --node_rank."
        if hello.rank not in self._expected:
            return f"{who} claims tensor parallel rank {hello.rank}, which is node 0's or none."
        if hello.model != self._model:
            return f"The nodes are unequal: the model folder of {who} differs from node 0's (config.json or weight files)."
        return ""

    def _find_lost(self) -> str:
        """A connection has ended. Not empty: why the set is broken."""
        self._nodes.probe()
        self._fresh = {rank: remote for rank, remote in self._fresh.items() if remote.there}
        lost = next((remote for remote in self.ranks if not remote.there), None)
        return "" if lost is None else f"lost {lost}"

    # -- waiting

    def _wait(self) -> None:
        """For something to `check`, and that."""
        self._on_wait()
        zmq.select(self.sockets, [], [], _POLL_SECONDS)
        self.check()

    def _node_of(self, rank: int) -> int:
        return rank // (self._config.tp // self._config.nnodes)

    def _missing(self) -> list[int]:
        there = self._ranks if self.started else self._fresh
        return [rank for rank in self._expected if rank not in there]

    def _away(self) -> set[int]:
        """Nodes whose launch is not there."""
        return {node for node in range(1, self._config.nnodes) if node not in self._nodes}

    def _named(self, missing: Sequence[int]) -> str:
        if not missing:
            return f"the launch of nodes {', '.join(map(str, sorted(self._away())))}"
        nodes = sorted({self._node_of(rank) for rank in missing})
        return f"{_ranks(missing)} (nodes {', '.join(map(str, nodes))})"

    def _awaited(self, missing: Sequence[int]) -> str:
        if lost := [self._nodes.name(node) for node in sorted(self._away()) if self._nodes.were(node)]:
            return f"lost {', '.join(lost)}: waiting until it is started again"
        if self._why and missing:
            return f"{self._why}: waiting for {_ranks(missing)}"
        return f"waiting for {self._named(missing)}"

    def _why_late(self, missing: Sequence[int]) -> str:
        reason = f"Within {self._config.nodes_timeout:.0f} s there came no {self._named(missing)}."
        if self._refused:
            reason += f" {self._refused} connections were refused: they did not know the cluster secret."
        return reason

    @staticmethod
    def _decode(data: bytes) -> FromNodes | None:
        try:
            message: FromNodes = codec.from_nodes.decode(data)
            return message
        except msgspec.MsgspecError as error:
            logger.error("dropped a malformed message of another node: %s", error)
            return None


def _ranks(numbers: Sequence[int]) -> str:
    return f"tensor parallel ranks {', '.join(map(str, numbers))}"
