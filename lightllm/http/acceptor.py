"""Accepts the clients' connections, as many as there are descriptors for.

The server's own connections and files need descriptors too: ZMQ even ends the process when it gets none for a connection of
the Router or the Detokenizer, and opening connections without a word needs no key. asyncio's own acceptor
takes whatever waits, until there is no descriptor left; here what is too much waits in the socket's backlog.
"""

from __future__ import annotations

import asyncio
import logging
import os
import resource
import socket
from collections.abc import Callable, Sized
from typing import Any

from lightllm.http.client_connections import ClientConnections
from lightllm.http.connection_counts import ConnectionCounts
from lightllm.http.tls import HANDSHAKE_SECONDS, SHUTDOWN_SECONDS, ServerTls

_log = logging.getLogger(__name__)

_RESERVED = 64
"""Descriptors that are left for connections to the server's other processes, for files and for child processes."""
_LEAST = 4
_AT_ONCE = 8
"""Connections taken before the event loop does something else."""
_TURN_SECONDS = 0.001
"""How long a worker with more connections than another leaves a waiting one to that, before it looks again."""
_PATIENCE = 10
"""Looks, after which it takes the connection itself: the other one is busy, or has ended."""
_FULL_SECONDS = 0.05
"""Until the next look, while no more connections can be taken."""


def connection_limit() -> int:
    """How many connections the limit of descriptors (`ulimit -n`) has room for, beside what is open now and a reserve."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = len(os.listdir("/proc/self/fd"))
    return max(limit - used - min(_RESERVED, limit // 4), _LEAST)


class Acceptor:
    """Starts on construction, in the event loop's thread; `close` ends it. Owns the listening socket."""

    def __init__(
        self,
        listener: socket.socket,
        make_protocol: Callable[[Callable[[], None]], asyncio.Protocol],
        connections: Sized,
        limit: int,
        tls: ServerTls | None = None,
        counts: ConnectionCounts | None = None,
        clients: ClientConnections | None = None,
    ) -> None:
        """make_protocol: takes what to call when its connection is lost; connections: those that are open, as the protocols keep it;
        limit: how many there may be; tls: what they speak; counts: of all workers that share the listener; clients: how many
        connections each has, None: any number."""
        self._listener = listener
        self._make_protocol = make_protocol
        self._connections = connections
        self._limit = limit
        self._tls = tls
        self._counts = counts
        self._clients = ClientConnections(0) if clients is None else clients
        self._patience = _PATIENCE
        self._starting: set[asyncio.Task[None]] = set()
        """Accepted, but their protocols do not count themselves yet."""
        self._told = False
        self._pause: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()
        listener.setblocking(False)
        self._loop.add_reader(listener.fileno(), self._accept)

    def close(self) -> None:
        """Takes no more connections; those that are there go on. A second call does nothing."""
        if self._listener.fileno() < 0:
            return
        if self._pause is not None:
            self._pause.cancel()
        self._loop.remove_reader(self._listener.fileno())
        self._listener.close()

    def _accept(self) -> None:
        at_once = _AT_ONCE
        if self._counts is not None:
            own = len(self._connections) + len(self._starting)
            self._counts.publish(own)
            if own > self._counts.least_of_others() and self._patience:
                self._patience -= 1
                self._pause_for(_TURN_SECONDS)
                return
            at_once = 1 if self._patience else _AT_ONCE
            self._patience = _PATIENCE
        for _ in range(at_once):
            if len(self._connections) + len(self._starting) >= self._limit:
                self._wait()
                return
            try:
                connection, address = self._listener.accept()
            except (BlockingIOError, ConnectionAbortedError):
                return  # another worker was faster, or the client has left
            except OSError as error:
                _log.warning("no connection can be accepted now: %s", error.strerror)
                self._wait()
                return
            leave = self._clients.enter(address)
            if leave is None:
                connection.close()
                continue
            task = self._loop.create_task(self._serve(connection, leave))
            self._starting.add(task)
            task.add_done_callback(self._starting.discard)

    async def _serve(self, connection: socket.socket, leave: Callable[[], None]) -> None:
        """From here on the protocol has the connection."""
        connection.setblocking(False)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        tls: dict[str, Any] = {}
        if self._tls is not None:
            tls = {
                "ssl": self._tls.context,
                "ssl_handshake_timeout": HANDSHAKE_SECONDS,
                "ssl_shutdown_timeout": SHUTDOWN_SECONDS,
            }
        try:
            await self._loop.connect_accepted_socket(lambda: self._make_protocol(leave), connection, **tls)
        except BaseException as error:
            leave()
            if not isinstance(error, OSError):  # also of TLS
                raise
            connection.close()  # the client has left already, or speaks something else

    def _wait(self) -> None:
        """Others wait in the backlog until a connection ends."""
        if not self._told:
            self._told = True
            _log.warning("%d connections are open: more have to wait (ulimit -n allows no more)", self._limit)
        self._pause_for(_FULL_SECONDS)

    def _pause_for(self, seconds: float) -> None:
        self._loop.remove_reader(self._listener.fileno())
        self._pause = self._loop.call_later(seconds, self._go_on)

    def _go_on(self) -> None:
        self._pause = None
        self._loop.add_reader(self._listener.fileno(), self._accept)
        self._accept()
