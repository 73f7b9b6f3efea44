"""One HTTP/1.1 POST with a streamed answer, on raw asyncio streams: the clock is read as soon as bytes arrive.

A general HTTP client costs 50-100 us a chunk and would itself be what is measured; this costs about 10.
"""

from __future__ import annotations

import asyncio
import dataclasses
import ssl
import time
from collections.abc import Callable
from urllib.parse import urlsplit

import httptools


@dataclasses.dataclass(frozen=True)
class Target:
    """A server: where to connect, and what goes before every path."""

    host: str
    port: int
    prefix: str = ""
    tls: bool = False
    api_key: str | None = None

    @classmethod
    def from_url(cls, url: str, api_key: str | None = None) -> Target:
        """Takes `http://host:port/prefix`; raises ValueError for anything else."""
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"{url!r} is not an http:// or https:// address")
        tls = parts.scheme == "https"
        return cls(parts.hostname, parts.port or (443 if tls else 80), parts.path.rstrip("/"), tls, api_key)

    @property
    def url(self) -> str:
        return f"http{'s' if self.tls else ''}://{self.host}:{self.port}{self.prefix}"


NOT_HEARD = "reset"


class StreamFailed(Exception):
    """The answer was not a complete stream. `kind` groups failures in the report; `retry_after`: seconds that the server
    named."""

    def __init__(self, kind: str, detail: str = "", retry_after: int | None = None) -> None:
        super().__init__(f"{kind}: {detail}" if detail else kind)
        self.kind = kind
        self.retry_after = retry_after


async def post_events(
    target: Target, path: str, body: bytes, on_event: Callable[[bytes, float], None], timeout: float
) -> None:
    """Sends `body` and calls `on_event(data, seconds)` for every server-sent event, `seconds` being
    `time.perf_counter()` when its last byte came. Returns after the last one; raises `StreamFailed`."""
    loop = asyncio.get_running_loop()
    head = (
        f"POST {target.prefix}{path} HTTP/1.1\r\nHost: {target.host}:{target.port}\r\nConnection: close\r\n"
        f"Content-Type: application/json\r\nAccept: text/event-stream\r\nContent-Length: {len(body)}\r\n"
    )
    if target.api_key:
        head += f"Authorization: Bearer {target.api_key}\r\n"
    tls = ssl.create_default_context() if target.tls else None
    transport = None
    try:
        async with asyncio.timeout(timeout):
            transport, reader = await loop.create_connection(
                lambda: _Reader(on_event, loop.create_future()), target.host, target.port, ssl=tls
            )
            transport.write(head.encode() + b"\r\n" + body)
            await reader.done
    except TimeoutError as error:
        raise StreamFailed(f"no end within {timeout:g} s") from error
    except OSError as error:
        raise StreamFailed("connection failed", str(error)) from error
    finally:
        if transport is not None:
            transport.abort()


class _Reader(asyncio.Protocol):
    """Parses one response; hands on its events."""

    def __init__(self, on_event: Callable[[bytes, float], None], done: asyncio.Future[None]) -> None:
        self.done = done
        self._on_event = on_event
        self._parser = httptools.HttpResponseParser(self)
        self._rest = b""
        self._now = 0.0
        self._until_close = True
        self._retry_after: int | None = None

    def data_received(self, data: bytes) -> None:
        self._now = time.perf_counter()
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._fail(error.__context__ or StreamFailed("malformed HTTP", str(error)))

    def connection_lost(self, error: Exception | None) -> None:
        if error is None and self._until_close and self._parser.get_status_code():
            self.on_message_complete()
        elif isinstance(error, ConnectionResetError) and not self._parser.get_status_code():
            # Of a server with more connections waiting than its kernel holds: it has not heard of this one.
            self._fail(StreamFailed(NOT_HEARD, "the connection was reset before an answer began"))
        else:
            self._fail(StreamFailed("cut off", "the connection ended before the answer did"))

    # called by the parser

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() in (b"transfer-encoding", b"content-length"):
            self._until_close = False
        if name.lower() == b"retry-after" and value.isdigit():
            self._retry_after = int(value)

    def on_body(self, body: bytes) -> None:
        self._rest += body
        if (
            self._parser.get_status_code() != 200
            or b"\n\n" not in self._rest
            and b"\r\n\r\n" not in self._rest
        ):
            return
        *events, self._rest = self._rest.replace(b"\r\n", b"\n").split(b"\n\n")
        for event in events:
            for line in event.split(b"\n"):
                if line.startswith(b"data:"):
                    self._on_event(line[5:].strip(), self._now)

    def on_message_complete(self) -> None:
        status = self._parser.get_status_code()
        if status != 200:
            detail = self._rest[:200].decode(errors="replace")
            self._fail(StreamFailed(f"HTTP {status}", detail, self._retry_after))
        elif not self.done.done():
            self.done.set_result(None)

    def _fail(self, error: BaseException) -> None:
        if not self.done.done():
            self.done.set_exception(error)
