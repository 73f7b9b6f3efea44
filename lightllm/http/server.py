"""uvicorn as our processes run it: our connections and acceptor, signals left alone, and an orderly end.

The hooks (`Server.startup`, `shutdown`, `server_state`, the arguments of a protocol) are not documented by uvicorn: its version is pinned in
requirements.txt, and `test/http/` and `test/httpserver/` run on them.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable, Iterator

import uvicorn
from starlette.types import ASGIApp

from lightllm.http.acceptor import Acceptor, connection_limit
from lightllm.http.client_connections import ClientConnections
from lightllm.http.connection_counts import ConnectionCounts
from lightllm.http.http_protocol import BoundedHttpProtocol
from lightllm.http.tls import ServerTls

LAST_WRITES_SECONDS = 0.8
"""From the beginning of the shutdown: how long clients may take to read the end of their answers."""


def make_config(app: ASGIApp, timeout_keep_alive: int) -> uvicorn.Config:
    """timeout_keep_alive: seconds that an idle connection is kept."""
    return uvicorn.Config(
        app,
        http=BoundedHttpProtocol,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=timeout_keep_alive,
        timeout_graceful_shutdown=1,
    )


class HttpServer(uvicorn.Server):
    """Leaves signals alone (the Supervisor decides), says when it listens, and ends what is open at its end."""

    def __init__(
        self,
        config: uvicorn.Config,
        on_started: Callable[[], None],
        end_requests: Callable[[], None],
        tls: ServerTls | None = None,
        counts: ConnectionCounts | None = None,
        max_per_client: int = 0,
    ) -> None:
        """end_requests: tells every open request that it is over; tls: None speaks plain HTTP; counts: of all workers that share
        the sockets, None: there are no others; max_per_client: connections, 0: any number."""
        super().__init__(config)
        self._on_started = on_started
        self._end_requests = end_requests
        self._tls = tls
        self._counts = counts
        self._clients = ClientConnections(max_per_client)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup([])
        self._acceptors = [
            Acceptor(
                listener,
                self._make_protocol,
                self.server_state.connections,
                connection_limit(),
                self._tls,
                self._counts,
                self._clients,
            )
            for listener in sockets or []
        ]
        self._on_started()

    def drain(self) -> None:
        """No connection outlives its answer: clients and proxies go elsewhere. Idle ones are closed, so that no request is
        sent on them; a connection on which one is arriving stays until that is answered."""
        for connection in list(self.server_state.connections):
            connection.drain()  # type: ignore[union-attr]

    def _make_protocol(self, on_lost: Callable[[], None]) -> asyncio.Protocol:
        return BoundedHttpProtocol(self.config, self.server_state, self.lifespan.state, on_lost=on_lost)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Requests are told that it is over. A client that does not read that in time loses the connection: every handler
        ends in an orderly way, while what it uses is still open."""
        self._end_requests()
        for acceptor in self._acceptors:
            acceptor.close()
        asyncio.get_running_loop().call_later(LAST_WRITES_SECONDS, self._drop_connections)
        await super().shutdown([])

    def _drop_connections(self) -> None:
        for connection in list(self.server_state.connections):
            connection.transport.abort()  # type: ignore[union-attr]

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:  # type: ignore[override]
        yield
