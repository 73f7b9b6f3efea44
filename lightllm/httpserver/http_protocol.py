"""uvicorn's HTTP protocol with a limit on headers, a way to drop a connection that no longer reads, requests that
learn that their client has gone although others are pipelined behind them, and offers to upgrade that are ignored as they
should be (RFC 9110, 7.8)."""

from __future__ import annotations

import asyncio

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from lightllm.httpserver.boundary import ABORT_CONNECTION

MAX_HEADER_BYTES = 32 * 1024
MAX_HEADERS = 200
MAX_PIPELINED = 16
"""Requests that may wait behind a running one before the connection is not read any more."""
HEADER_SECONDS = 30.0
"""From the first byte of a request, or from the connection, to the end of its headers."""
WRITE_SECONDS = 60.0
"""A client that reads nothing for so long, although something waits for it, loses its connection."""


class BoundedHttpProtocol(HttpToolsProtocol):
    """Refuses requests whose line and headers exceed the limits (llhttp itself has none). uvicorn knows the last
    pipelined request only, and stops reading behind it, so that it would not see the client leave."""

    _header_bytes = 0
    _open: tuple[RequestResponseCycle, ...] = ()
    """Requests of this connection that are not answered."""
    _header_timer: asyncio.TimerHandle | None = None
    _write_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._header_timer = self.loop.call_later(HEADER_SECONDS, transport.abort)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._write_timer = self.loop.call_later(WRITE_SECONDS, self._drop_unless_read, self._buffered())

    def resume_writing(self) -> None:
        super().resume_writing()
        self._stop_write_timer()

    def _buffered(self) -> int:
        return self.transport.get_write_buffer_size()

    def _drop_unless_read(self, buffered: int) -> None:
        """Nothing is written while writing is paused: the buffer shrinks, or the client does not read."""
        if self._buffered() >= buffered:
            self.transport.abort()
        else:
            self._write_timer = self.loop.call_later(WRITE_SECONDS, self._drop_unless_read, self._buffered())

    def _stop_write_timer(self) -> None:
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None

    def _stop_header_timer(self) -> None:
        if self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None

    def data_received(self, data: bytes) -> None:
        self._unset_keepalive_if_required()
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserError:
            self.send_400_response("Invalid HTTP request received.")
        except httptools.HttpParserUpgrade as upgrade:
            self._go_on_without_upgrade(data[upgrade.args[0] :])

    def _go_on_without_upgrade(self, rest: bytes) -> None:
        """The parser takes what follows the headers for another protocol, where Java's client, which offers HTTP/2 with
        every request, has sent its body. So the request is parsed once more, without the offer."""
        method = self.parser.get_method()
        if method == b"CONNECT":
            self.send_400_response("This is no proxy.")
            return
        lines = [b"%b %b HTTP/%b" % (method, self.url, self.parser.get_http_version().encode())]
        for name, value in self.headers:
            if name == b"connection":
                value = b"close" if b"close" in value.lower() else b"keep-alive"
            if name not in (b"upgrade", b"http2-settings"):
                lines.append(name + b": " + value)
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn does
        self.data_received(b"\r\n".join(lines) + b"\r\n\r\n" + rest)

    def on_message_complete(self) -> None:
        if not self.parser.should_upgrade():
            super().on_message_complete()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._header_bytes = 0
        self._stop_header_timer()
        self._header_timer = self.loop.call_later(HEADER_SECONDS, self.transport.abort)
        self.scope[ABORT_CONNECTION] = self.transport.abort  # type: ignore[literal-required]

    def on_url(self, url: bytes) -> None:
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._count(len(name) + len(value))
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._stop_header_timer()
        if self.parser.should_upgrade():
            return
        super().on_headers_complete()
        self._open = (*(cycle for cycle in self._open if not cycle.response_complete), self.cycle)
        if 0 < len(self.pipeline) <= MAX_PIPELINED:
            self.flow.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_header_timer()
        super().connection_lost(exc)
        self._stop_write_timer()
        for cycle in self._open:
            if not cycle.response_complete:
                cycle.disconnected = True
                cycle.message_event.set()
        self._open = ()

    def _count(self, size: int) -> None:
        self._header_bytes += size
        if self._header_bytes > MAX_HEADER_BYTES or len(self.headers) >= MAX_HEADERS:
            raise ValueError("request headers are too large")
