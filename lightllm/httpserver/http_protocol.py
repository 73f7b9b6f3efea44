"""uvicorn's HTTP protocol with a limit on headers, a way to drop a connection that no longer reads, and requests that
learn that their client has gone although others are pipelined behind them."""

from __future__ import annotations

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from lightllm.httpserver.boundary import ABORT_CONNECTION

MAX_HEADER_BYTES = 32 * 1024
MAX_HEADERS = 200
MAX_PIPELINED = 16
"""Requests that may wait behind a running one before the connection is not read any more."""


class BoundedHttpProtocol(HttpToolsProtocol):
    """Refuses requests whose line and headers exceed the limits (llhttp itself has none). uvicorn knows the last
    pipelined request only, and stops reading behind it, so that it would not see the client leave."""

    _header_bytes = 0
    _open: tuple[RequestResponseCycle, ...] = ()
    """Requests of this connection that are not answered."""

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._header_bytes = 0
        self.scope[ABORT_CONNECTION] = self.transport.abort  # type: ignore[literal-required]

    def on_url(self, url: bytes) -> None:
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._count(len(name) + len(value))
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        super().on_headers_complete()
        self._open = (*(cycle for cycle in self._open if not cycle.response_complete), self.cycle)
        if 0 < len(self.pipeline) <= MAX_PIPELINED:
            self.flow.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        for cycle in self._open:
            if not cycle.response_complete:
                cycle.disconnected = True
                cycle.message_event.set()
        self._open = ()

    def _count(self, size: int) -> None:
        self._header_bytes += size
        if self._header_bytes > MAX_HEADER_BYTES or len(self.headers) >= MAX_HEADERS:
            raise ValueError("request headers are too large")
