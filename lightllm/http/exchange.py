"""One request and its answer: the ASGI channel between the application and the connection."""

from __future__ import annotations

import asyncio
import functools
import http
import logging
import re
from collections.abc import Callable, Sequence
from typing import Protocol

from starlette.types import ASGIApp, Message, Scope

_log = logging.getLogger(__name__)
_CONTROL = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_EVENT_COMMENT = b":\n\n"


class Connection(Protocol):
    """What an exchange needs of the connection that it belongs to."""

    transport: asyncio.Transport
    write_paused: bool

    @property
    def default_headers(self) -> Sequence[tuple[bytes, bytes]]:
        """Headers of every answer."""

    async def writable(self) -> None:
        """Returns when the client has read enough for more to be written, or has left."""

    def wants_body(self) -> None:
        """The application has taken what has come of the body."""

    def answered(self) -> None:
        """The answer is complete."""


class Exchange:
    """Every `http.response.body` with a body is one chunk of a chunked answer. HTTP/1.0 clients get an answer of unknown
    length without chunks, up to the end of the connection."""

    def __init__(
        self, connection: Connection, scope: Scope, keep_alive: bool, expects_continue: bool
    ) -> None:
        self.keep_alive = keep_alive
        """Whether the connection may serve another request afterwards."""
        self.started = False
        """The head of the answer is written."""
        self.gone = False
        """The client has left."""
        self._connection = connection
        self._scope = scope
        self._is_head = scope["method"] == "HEAD"
        self._version = scope["http_version"]
        self._awaits_continue = expects_continue
        self._event = asyncio.Event()
        self._body = bytearray()
        self._more_body = True
        self._complete = False
        self._chunked = False
        self._left: int | None = None
        """Bytes of the answer's body that are announced and not written; None: it ends when it ends."""
        self._events = False
        """The answer is a stream of server-sent events."""

    # -- for the connection

    @property
    def buffered(self) -> int:
        """Bytes of the body that the application has not taken."""
        return len(self._body)

    def received(self, body: bytes, complete: bool) -> None:
        """The next part of the request's body."""
        self._body += body
        self._more_body = not complete
        self._event.set()

    def leave(self) -> None:
        """The client has left: nothing is written any more."""
        self.gone = True
        self._event.set()

    def probe(self) -> None:
        """Writes what every client must skip, so that the kernel of one that has left answers with a reset."""
        write = self._connection.transport.write
        if not self.started:
            if self._version == "1.1":
                write(CONTINUE)
        elif self._events:
            write(_chunk(_EVENT_COMMENT) if self._chunked else _EVENT_COMMENT)

    # -- ASGI

    async def run(self, app: ASGIApp) -> None:
        """Lets the application answer. It handles its own errors; what gets here is a defect of it."""
        try:
            await app(self._scope, self.receive, self.send)
        except BaseException as error:
            if not isinstance(error, asyncio.CancelledError):
                _log.exception("the application failed")
            self._connection.transport.abort()
            if not isinstance(error, Exception):
                raise
        else:
            if not self._complete and not self.gone:
                _log.error("the application returned without completing its answer")
                self._connection.transport.abort()

    async def receive(self) -> Message:
        """The next part of the body, or `http.disconnect` when the client has left or the answer is complete."""
        if self._awaits_continue and not self._connection.transport.is_closing():
            self._awaits_continue = False
            self._connection.transport.write(CONTINUE)
        if not self.gone and not self._complete:
            await self._event.wait()
            self._event.clear()
        if self.gone or self._complete:
            return {"type": "http.disconnect"}
        body = bytes(self._body)
        self._body = bytearray()
        self._connection.wants_body()
        return {"type": "http.request", "body": body, "more_body": self._more_body}

    async def send(self, message: Message) -> None:
        """Writes the head of the answer, or a part of its body."""
        if self._connection.write_paused:
            await self._connection.writable()
        if self.gone:
            return
        if not self.started:
            self.started = True
            self._awaits_continue = False
            self._connection.transport.write(self._head(message["status"], message.get("headers", ())))
            return
        if self._complete:
            raise RuntimeError("the answer is complete already")
        body = message.get("body", b"")
        more = message.get("more_body", False)
        if self._chunked:
            if body:
                body = _chunk(body) if more else _chunk(body) + b"0\r\n\r\n"
            elif not more:
                body = b"0\r\n\r\n"
        elif self._left is not None:
            body = self._counted(body, more)
        if body:
            self._connection.transport.write(body)
        if not more:
            self._complete = True
            self._event.set()
            self._connection.answered()

    def write_parts(self, make: Callable[[], list[bytes]]) -> int | None:
        """Makes further parts of a chunked answer's body and writes them at once, past the application's layers; how many there were.
        None: nothing was made, for the client is slow or has left, or the answer does not come in chunks."""
        if self._connection.write_paused or self.gone or not self._chunked or self._complete:
            return None
        parts = make()
        for part in parts:
            self._connection.transport.write(_chunk(part))
        return len(parts)

    def _counted(self, body: bytes, more: bool) -> bytes:
        """What of `body` may be sent: nothing where the answer has a head only. Raises when its length is not as announced."""
        assert self._left is not None
        if self._is_head:
            return b""
        self._left -= len(body)
        if self._left < 0 or (self._left and not more):
            raise RuntimeError("the length of the answer is not as announced")
        return body

    def _head(self, status: int, headers: Sequence[tuple[bytes, bytes]]) -> bytes:
        lines = [status_line(status)]
        closes = False
        for name, value in (*self._connection.default_headers, *headers):
            if _CONTROL.search(value):
                raise RuntimeError(f"invalid value of the header {name!r}")
            if name == b"content-length":
                self._left = int(value)
            elif name == b"content-type":
                self._events = value.startswith(b"text/event-stream")
            elif name == b"connection":
                closes = b"close" in value.lower()
            lines.append(name + b": " + value)
        if self._is_head or status in (204, 304):
            self._left = 0
        elif self._left is None:
            self._chunked = self._version == "1.1"
            if self._chunked:
                lines.append(b"transfer-encoding: chunked")
        if self._more_body:  # an answer without the body read: nothing can follow on this connection
            self.keep_alive = False
        self.keep_alive = self.keep_alive and not closes
        if not self.keep_alive and not closes:
            lines.append(b"connection: close")
        return b"\r\n".join(lines) + b"\r\n\r\n"


@functools.cache
def status_line(status: int) -> bytes:
    """The first line of an answer, without its line break."""
    try:
        phrase = http.HTTPStatus(status).phrase
    except ValueError:
        phrase = ""
    return b"HTTP/1.1 %d %b" % (status, phrase.encode())


def _chunk(body: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(body), body)
