"""The launches of the other nodes, as node 0's Router sees them: who is there, and which ranks they are to start again."""

from __future__ import annotations

import logging

from lightllm.ipc.nodes import PROBE, NodeListener
from lightllm.protocol import codec
from lightllm.protocol.nodes import EndRanks, Goodbye, NodeHello, RankHello

logger = logging.getLogger("router")


class RemoteNodes:
    """Used by one thread at a time."""

    def __init__(self, listener: NodeListener) -> None:
        self._listener = listener
        self._connections: dict[int, bytes] = {}
        """Of the nodes that are there."""
        self._hosts: dict[int, str] = {}
        """Of all that have been there."""
        self._unwanted: dict[int, tuple[int, EndRanks]] = {}
        """Rank -> its node, and what that is told; until another process is that rank."""

    def __contains__(self, node_rank: int) -> bool:
        return node_rank in self._connections

    def were(self, node_rank: int) -> bool:
        """Whether it has been there."""
        return node_rank in self._hosts

    def name(self, node_rank: int) -> str:
        """ "node 1 (its host)"."""
        host = self._hosts.get(node_rank)
        return f"node {node_rank} ({host})" if host else f"node {node_rank}"

    def name_at(self, connection: bytes) -> str:
        return next(
            (self.name(node) for node, theirs in self._connections.items() if theirs == connection), ""
        )

    def came(self, connection: bytes, hello: NodeHello) -> None:
        self._hosts[hello.node_rank] = hello.host
        if self._connections.get(hello.node_rank) == connection:
            return
        self._connections[hello.node_rank] = connection
        logger.info("%s is there", self.name(hello.node_rank))
        for node_rank, order in self._unwanted.values():  # it may have come to a connection that was ending
            if node_rank == hello.node_rank:
                self._listener.send(connection, codec.encode(order))

    def end(self, rank: RankHello, reason: str) -> None:
        """This process is of no use any more: its node starts it again, now or when it is there."""
        order = EndRanks([rank.pid], reason)
        self._unwanted[rank.rank] = (rank.node_rank, order)
        if rank.node_rank in self._connections:
            self._listener.send(self._connections[rank.node_rank], codec.encode(order))

    def is_new(self, rank: RankHello) -> None:
        """This process is the rank now."""
        self._unwanted.pop(rank.rank, None)

    def probe(self) -> None:
        """A connection has ended: finds out whether it is that of a node."""
        for node_rank, connection in list(self._connections.items()):
            if not self._listener.send(connection, PROBE):
                del self._connections[node_rank]
                logger.error("%s is lost", self.name(node_rank))

    def say_goodbye(self, reason: str) -> None:
        """reason: why the server has failed; "": it stops."""
        for connection in self._connections.values():
            self._listener.send(connection, codec.encode(Goodbye(reason)))
