"""The connection of another node's Supervisor to node 0's Router: what node 0 wants of this node, and whether it is there.

Node 0's end of it is `router.remote_nodes`. The Model Backends of this node have connections of their own.
"""

from __future__ import annotations

import math
import selectors
import socket
import time

import zmq

from lightllm.config import ServerConfig
from lightllm.errors import NodeLost
from lightllm.ipc.channels import make_context
from lightllm.ipc.nodes import NodeConnection, NodeKeys, node_address, read_secret
from lightllm.protocol import codec
from lightllm.protocol.nodes import EndRanks, Goodbye, NodeFailed, NodeHello

_GOODBYE_SECONDS = 2.0
"""Where nothing is started again: for a connection that is lost for a moment."""
_LAST_WORDS_SECONDS = 0.5
"""What was said last leaves before the socket closes."""


class NodeWatch:
    def __init__(self, config: ServerConfig, selector: selectors.BaseSelector) -> None:
        """selector: wakes the caller when there may be something for `orders`."""
        self._node_0 = f"node 0 at {node_address(config)}"
        self._patience = config.nodes_timeout if config.max_restarts else _GOODBYE_SECONDS
        self._hello = codec.encode(NodeHello(config.node_rank, socket.gethostname()))
        keys = NodeKeys.derive(read_secret(config))
        self._connection = NodeConnection(make_context(), node_address(config), keys)
        self._connection.send(self._hello)
        self._seen = math.inf
        """When node 0 was last there, or should have been; `time.monotonic()`."""
        self._goodbye: Goodbye | None = None
        for source in (self._connection.socket, self._connection.monitor):
            selector.register(source.getsockopt(zmq.FD), selectors.EVENT_READ, _wake)

    def orders(self) -> list[EndRanks]:
        """Those that have come. To be called after each wake, and every second; never waits."""
        if self._connection.events()[1]:
            self._connection.send(self._hello)  # to the Router that comes
        if self._connection.connected:
            self._seen = time.monotonic()
        orders = []
        while (data := self._connection.receive()) is not None:
            message = codec.to_node.decode(data)
            if isinstance(message, Goodbye):
                self._goodbye = message
            else:
                orders.append(message)
        return orders

    @property
    def stopped(self) -> bool:
        """Node 0 has been told to stop. Raises `NodeLost` where it has failed, or is gone for too long."""
        if self._goodbye is not None and self._goodbye.reason:
            raise NodeLost(f"Node 0 has failed: {self._goodbye.reason}")
        if self._goodbye is None and time.monotonic() - self._seen > self._patience:
            raise NodeLost(f"The connection to {self._node_0} was lost.", "See its log.")
        return self._goodbye is not None

    def expect_node_0(self) -> None:
        """The ranks of this node have met those of node 0: it is there."""
        self._seen = min(self._seen, time.monotonic())

    def say_failed(self, reason: str) -> None:
        """This node gives up, and so must the server."""
        self._connection.send(codec.encode(NodeFailed(reason)))
        time.sleep(_LAST_WORDS_SECONDS)

    def close(self) -> None:
        self._connection.close()


def _wake() -> None:
    """Each turn of the caller asks for orders."""
