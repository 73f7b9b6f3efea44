"""The authenticated connection between the nodes of one server: ZMQ CURVE (curvezmq.org) with keys from a shared secret.

Both key pairs are derived from the secret, so every node can make them: a stranger without the secret knows neither the
public key of node 0, without which no handshake begins, nor a client key that node 0 accepts. Traffic is encrypted, with
keys of its own for each connection.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import types
from collections.abc import Mapping

import zmq
from zmq.auth.thread import ThreadAuthenticator
from zmq.utils import z85
from zmq.utils.monitor import recv_monitor_message

from lightllm.config import ServerConfig
from lightllm.errors import InvalidOption
from lightllm.ipc.cluster_secret import long_enough, read_secret_file

SECRET_VARIABLE = "LIGHTLLM_CLUSTER_SECRET"

_DOMAIN = "lightllm-nodes"
_HEARTBEAT_MS, _SILENCE_MS = 2_000, 15_000
"""A peer whose machine or network went away without a word counts as gone after the latter."""
PROBE = b""
"""A frame that says nothing: sending it tells whether the connection is there."""
_HANDSHAKE_FAILURES = (
    zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL, zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL, zmq.EVENT_HANDSHAKE_FAILED_AUTH
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class NodeKeys:
    """Curve25519 key pairs in Z85 text (40 bytes each)."""

    server_public: bytes
    server_secret: bytes = dataclasses.field(repr=False)
    client_public: bytes
    client_secret: bytes = dataclasses.field(repr=False)

    @classmethod
    def derive(cls, secret: bytes) -> NodeKeys:
        """scrypt (RFC 7914) makes guessing slow, should the secret be a word."""
        raw = hashlib.scrypt(secret, salt=b"lightllm nodes 1", n=2**14, r=8, p=1, dklen=64)
        server, client = z85.encode(raw[:32]), z85.encode(raw[32:])
        return cls(zmq.curve_public(server), server, zmq.curve_public(client), client)


def read_secret(config: ServerConfig, environ: Mapping[str, str] = os.environ) -> bytes:
    """The secret that all nodes share: the file's content, or the environment's. Raises `InvalidOption`."""
    remedy = f"Give every node the same --cluster_secret_file or {SECRET_VARIABLE}."
    path = config.cluster_secret_file
    if path is not None:
        return read_secret_file(path, remedy)
    secret = environ.get(SECRET_VARIABLE, "").strip().encode()
    if not secret:
        raise InvalidOption(f"--nnodes {config.nnodes} needs a secret that the nodes share.", remedy)
    return long_enough(secret, f"The secret in {SECRET_VARIABLE}", remedy)


def node_address(config: ServerConfig) -> str:
    """Where node 0 listens for the other nodes: the port after torch's."""
    host = f"[{config.nccl_host}]" if ":" in config.nccl_host else config.nccl_host
    return f"tcp://{host}:{config.nccl_port + 1}"


class _Monitored:
    """One end: a socket, and what happens to its connections."""

    def __init__(self, context: zmq.Context, kind: int, address: str) -> None:
        self.socket = context.socket(kind)
        self.socket.set_hwm(0)
        self.socket.ipv6 = "[" in address
        self.socket.heartbeat_ivl, self.socket.heartbeat_timeout = _HEARTBEAT_MS, _SILENCE_MS
        self.monitor = self.socket.get_monitor_socket()
        self.connected = False
        """As of the last call of `events`: the latest handshake has succeeded, and no connection has ended since."""

    def events(self) -> tuple[int, int]:
        """Since the last call: (handshakes that were refused, connections that ended; of a `NodeConnection` the refused
        ones among them)."""
        refused = ended = 0
        while self.monitor.poll(0):
            event = recv_monitor_message(self.monitor)["event"]
            refused += event in _HANDSHAKE_FAILURES
            ended += event == zmq.EVENT_DISCONNECTED
            if event in (zmq.EVENT_HANDSHAKE_SUCCEEDED, zmq.EVENT_DISCONNECTED):
                self.connected = event == zmq.EVENT_HANDSHAKE_SUCCEEDED
        return refused, ended

    def close(self) -> None:
        self.socket.disable_monitor()
        self.socket.close(linger=0)


class NodeListener(_Monitored):
    """Node 0's end. Peers are told apart by an id of each connection (bytes), which ends with it."""

    def __init__(self, context: zmq.Context, address: str, keys: NodeKeys) -> None:
        """Raises `InvalidOption` when it cannot listen there."""
        self._authenticator = ThreadAuthenticator(context)
        self._authenticator.start()
        only = types.SimpleNamespace(callback=lambda domain, key: key == keys.client_public)
        self._authenticator.configure_curve_callback(_DOMAIN, credentials_provider=only)
        super().__init__(context, zmq.ROUTER, address)
        self.socket.router_mandatory = 1
        self.socket.curve_server = True
        self.socket.curve_secretkey = keys.server_secret
        self.socket.zap_domain = _DOMAIN.encode()
        try:
            self.socket.bind(address)
        except zmq.ZMQError as error:
            self.close()
            raise InvalidOption(
                f"Node 0 cannot listen for the other nodes on {address}: {error.strerror}.",
                "Give an address of this machine with --nccl_host, and free ports: --nccl_port and the next.",
            ) from error

    def receive(self) -> tuple[bytes, bytes] | None:
        """(connection, message); None if there is none now."""
        try:
            connection, message = self.socket.recv_multipart(zmq.NOBLOCK)
        except zmq.Again:
            return None
        return connection, message

    def send(self, connection: bytes, message: bytes) -> bool:
        """False: the connection is gone. A message that is sent just after its end (ZMQ takes a millisecond to take
        note, also after `events` has told of it) counts as sent, and is lost."""
        try:
            self.socket.send_multipart([connection, message])
        except zmq.ZMQError as error:
            if error.errno != zmq.EHOSTUNREACH:
                raise
            return False
        return True

    def close(self) -> None:
        super().close()
        self._authenticator.stop()


class NodeConnection(_Monitored):
    """Another node's end: one connection of one rank to node 0. It is kept trying until node 0 is there."""

    def __init__(self, context: zmq.Context, address: str, keys: NodeKeys) -> None:
        super().__init__(context, zmq.DEALER, address)
        self.socket.curve_serverkey = keys.server_public
        self.socket.curve_publickey, self.socket.curve_secretkey = keys.client_public, keys.client_secret
        self.socket.reconnect_ivl, self.socket.reconnect_ivl_max = 100, 500
        self.socket.connect(address)

    def receive(self) -> bytes | None:
        """The next message; None if there is none now. Empty frames are probes of the connection, and no messages."""
        while True:
            try:
                message = self.socket.recv(zmq.NOBLOCK)
            except zmq.Again:
                return None
            if message:
                return message

    def send(self, message: bytes) -> None:
        """Never waits. After a handshake that was refused, of which `events` tells, there is no connection to wait for: the
        message is lost."""
        with contextlib.suppress(zmq.Again):
            self.socket.send(message, zmq.NOBLOCK)
