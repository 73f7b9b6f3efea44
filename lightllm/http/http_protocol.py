"""A connection of the Http Server, in the place of uvicorn's: it reads one request at a time, and has a limit or a deadline in
each of its states, so that a stranger can neither slow others down nor hold memory.

    state    waits for                          at most
    HEAD     request line and headers           HEAD_SECONDS; MAX_HEAD_BYTES, MAX_HEADERS of the parser
    BODY     the rest of the body               BODY_SECONDS without BODY_BYTES_A_SECOND; the application's limit on bodies
    ANSWER   the application                    MAX_HELD_BYTES of further requests are held, unparsed
    IDLE     the next request                   uvicorn's timeout_keep_alive
    CLOSING  the client, that is to close       LINGER_SECONDS, LINGER_BYTES (read and dropped)

Whatever is written: a client that reads nothing for WRITE_SECONDS loses its connection.
"""

from __future__ import annotations

import asyncio
import enum
import select
from collections.abc import Callable, Sequence
from typing import Any

import uvicorn
from uvicorn.server import ServerState

from lightllm.errors import BodyTooSlow, RequestError
from lightllm.http.error_middleware import ABORT_CONNECTION, WRITE_PARTS
from lightllm.http.error_responses import error_body
from lightllm.http.exchange import Exchange, status_line
from lightllm.http.request_parser import RequestParser

HEAD_SECONDS = 30.0
"""From the connection, or from the first byte of a request, to the end of its headers."""
BODY_SECONDS = 60.0
BODY_BYTES_A_SECOND = 1024
"""On the average of each `BODY_SECONDS`; what frames chunks does not count."""
BODY_BUFFER_BYTES = 64 * 1024
"""What the application has not taken of a body before the client is read no further."""
PARTS_A_TURN = 256
"""Pieces of a chunked body that are parsed before other connections get their turn."""
MAX_HELD_BYTES = 64 * 1024
"""What has come behind a request that is not answered, before the client is read no further."""
LINGER_SECONDS = 5.0
"""How long a connection stays after an early answer: a client that sends all before it reads would meet a broken one instead."""
LINGER_BYTES = 1 << 28
"""What such a client may still send before its connection is broken."""
WRITE_SECONDS = 60.0
"""A client that reads nothing for so long, although something waits for it, loses its connection."""
PROBE_SECONDS = (0.05, 0.2, 1.0, 5.0)
"""After the client's end of file, from one look whether it still reads to the next."""


class _State(enum.Enum):
    HEAD = enum.auto()
    BODY = enum.auto()
    ANSWER = enum.auto()
    IDLE = enum.auto()
    CLOSING = enum.auto()


class BoundedHttpProtocol(asyncio.Protocol):
    """One connection. uvicorn makes it, ends it (`shutdown`), and counts it in `server_state`."""

    transport: asyncio.Transport

    def __init__(
        self,
        config: uvicorn.Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
        on_lost: Callable[[], None] | None = None,
    ) -> None:
        """on_lost: called when the connection has ended."""
        self._app = config.loaded_app
        self._idle_seconds = config.timeout_keep_alive
        self._server = server_state
        self._on_lost = on_lost
        self._loop = _loop or asyncio.get_running_loop()
        self._parser = RequestParser()
        self._exchange: Exchange | None = None
        """The request that is read or answered."""
        self._held = b""
        """What has come and is not parsed."""
        self._state = _State.HEAD
        self._timer: asyncio.TimerHandle | None = None
        """The deadline of the state."""
        self._write_timer: asyncio.TimerHandle | None = None
        self._can_write = asyncio.Event()
        self.write_paused = False
        self._read_paused = False
        self._eof = False
        self._body_before = 0
        """Bytes of the body at the last look whether it comes."""
        self._dropped = 0
        self._probes = 0

    @property
    def default_headers(self) -> Sequence[tuple[bytes, bytes]]:
        """The date, which uvicorn keeps."""
        return self._server.default_headers

    # -- asyncio

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self.transport = transport
        self._server.connections.add(self)  # type: ignore[arg-type]
        self._peer = _address(transport, "peername")
        self._local = _address(transport, "sockname")
        self._deadline(HEAD_SECONDS, transport.abort)

    def connection_lost(self, exc: Exception | None) -> None:
        self._server.connections.discard(self)  # type: ignore[arg-type]
        if self._on_lost is not None:
            self._on_lost()
        self._cancel_deadline()
        self.resume_writing()
        self._parser.close()
        if self._exchange is not None:
            self._exchange.leave()
            self._exchange = None

    def data_received(self, data: bytes) -> None:
        if self._state is _State.CLOSING:
            self._dropped += len(data)
            if self._dropped > LINGER_BYTES:
                self.transport.abort()
        elif self._state is _State.ANSWER:
            self._held += data
            self._pace()
        else:
            self._read(self._held + data if self._held else data)

    def eof_received(self) -> bool:
        """The client sends no more. That it has left altogether shows only when something is written (see `_look`):
        a request that is complete is answered. True: the connection stays. TLS knows no half-closed connections."""
        self._eof = True
        if not self.transport.can_write_eof():
            return False
        if self._state is _State.ANSWER:
            self._look()
            return True
        return self._state is _State.BODY and bool(self._held)

    def pause_writing(self) -> None:
        self.write_paused = True
        self._can_write.clear()
        self._write_timer = self._loop.call_later(WRITE_SECONDS, self._drop_unless_read, self._buffered())

    def resume_writing(self) -> None:
        self.write_paused = False
        self._can_write.set()
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None

    # -- uvicorn

    def shutdown(self) -> None:
        """Ends the connection, after the answer if a request is open."""
        if self._exchange is None:
            self.transport.close()
        else:
            self._exchange.keep_alive = False

    def drain(self) -> None:
        """Ends the connection if it is idle, or after the answer if a request is open; one that arrives is still answered."""
        if self._exchange is not None:
            self._exchange.keep_alive = False
        elif self._state is _State.IDLE:
            self._close()

    # -- the exchange

    async def writable(self) -> None:
        """Returns when the client has read enough for more to be written, or has left."""
        await self._can_write.wait()

    def wants_body(self) -> None:
        """The application has taken what has come of the body."""
        if self._read_paused:
            self._pace()

    def answered(self) -> None:
        """The answer is complete: on to the next request, if one can follow."""
        exchange, self._exchange = self._exchange, None
        if exchange is None or self.transport.is_closing():
            return
        if not self._parser.complete:
            self._linger()
        elif not exchange.keep_alive or (self._eof and not self._held):
            self._close()
        else:
            self._parser.next_request()
            if self._held:
                self._read(self._held)
            else:
                self._enter(_State.IDLE)
                self._pace()

    # -- reading

    def _read(self, data: bytes) -> None:
        """Parses up to the end of the request, or until others get their turn; holds the rest."""
        parser, at = self._parser, 0
        try:
            while at < len(data) and not parser.complete and len(parser.parts) < PARTS_A_TURN:
                at = parser.feed(data, at)
        except RequestError as error:
            self._refuse(error)
            return
        self._held = data[at:]
        if parser.head_complete:
            if self._exchange is None:
                self._begin()
            if parser.complete or parser.parts:
                assert self._exchange is not None
                self._exchange.received(parser.take_body(), parser.complete)
            self._enter(_State.ANSWER if parser.complete else _State.BODY)
        else:
            self._enter(_State.HEAD)
        if self._held and not parser.complete:
            self._loop.call_soon(self._go_on)
        elif self._eof:
            if not parser.complete:
                self.transport.close()
                return
            self._look()
        self._pace()

    def _go_on(self) -> None:
        if self._state is _State.BODY and not self.transport.is_closing():
            self._read(self._held)

    def _begin(self) -> None:
        """Starts the application on the request whose head is complete."""
        parser = self._parser
        scope: dict[str, Any] = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": parser.version,
            "method": parser.method,
            "scheme": "http" if self.transport.get_extra_info("ssl_object") is None else "https",
            "path": parser.path,
            "raw_path": parser.raw_path,
            "query_string": parser.query,
            "root_path": "",
            "headers": parser.headers,
            "client": self._peer,
            "server": self._local,
            "state": {},
            ABORT_CONNECTION: self.transport.abort,
        }
        self._exchange = Exchange(self, scope, parser.keep_alive, parser.expects_continue)
        scope[WRITE_PARTS] = self._exchange.write_parts
        task = self._loop.create_task(self._exchange.run(self._app))  # type: ignore[arg-type]
        self._server.tasks.add(task)
        task.add_done_callback(self._server.tasks.discard)

    def _pace(self) -> None:
        """Reads on or not, by what is held for others."""
        exchange = self._exchange
        pause = (
            len(self._held) > (MAX_HELD_BYTES if self._parser.complete else 0)
            or exchange is not None
            and exchange.buffered > BODY_BUFFER_BYTES
        )
        if pause != self._read_paused and not self._eof and not self.transport.is_closing():
            self._read_paused = pause
            if pause:
                self.transport.pause_reading()
            else:
                self.transport.resume_reading()

    # -- states and their deadlines

    def _enter(self, state: _State) -> None:
        if state is self._state:
            return
        self._state = state
        self._cancel_deadline()
        if state is _State.HEAD:
            self._deadline(HEAD_SECONDS, self.transport.abort)
        elif state is _State.BODY:
            self._body_before = 0
            self._deadline(BODY_SECONDS, self._drop_unless_sent)
        elif state is _State.IDLE:
            self._deadline(self._idle_seconds, self._close)

    def _deadline(self, seconds: float, then: Callable[[], None]) -> None:
        self._timer = self._loop.call_later(seconds, then)

    def _cancel_deadline(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _drop_unless_sent(self) -> None:
        size = self._parser.body_bytes
        if self._read_paused or size - self._body_before >= BODY_SECONDS * BODY_BYTES_A_SECOND:
            self._body_before = size
            self._deadline(BODY_SECONDS, self._drop_unless_sent)
        else:
            self._refuse(
                BodyTooSlow(
                    f"the body came too slowly: less than {BODY_BYTES_A_SECOND} bytes a second"
                    f" for {BODY_SECONDS:g} seconds"
                )
            )

    def _buffered(self) -> int:
        return self.transport.get_write_buffer_size()

    def _drop_unless_read(self, buffered: int) -> None:
        """Nothing is written while writing is paused: the buffer shrinks, or the client does not read."""
        if self._buffered() >= buffered:
            self.transport.abort()
        else:
            self._write_timer = self._loop.call_later(WRITE_SECONDS, self._drop_unless_read, self._buffered())

    def _look(self) -> None:
        """Whether a client whose end of file has come still reads. One that has closed its socket answers with a reset
        as soon as something is written; nothing is read any more, so that one has to look."""
        self._cancel_deadline()
        if _hung_up(self.transport):
            self.transport.abort()
            return
        seconds = PROBE_SECONDS[min(self._probes, len(PROBE_SECONDS) - 1)]
        if self._probes < len(PROBE_SECONDS) and self._exchange is not None:
            self._exchange.probe()
        self._probes += 1
        self._deadline(seconds, self._look)

    # -- ends

    def _refuse(self, error: RequestError) -> None:
        """Answers what is no request, or cannot become one, and ends the connection."""
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            exchange.leave()
            if exchange.started:
                self.transport.abort()
                return
        body = error_body(self._parser.path, error)
        head = [
            status_line(error.status),
            b"content-type: application/json",
            b"content-length: %d" % len(body),
        ]
        head += [name + b": " + value for name, value in self.default_headers]
        self.transport.write(b"\r\n".join([*head, b"connection: close", b"", body]))
        self._linger()

    def _linger(self) -> None:
        """Ends the connection from this side, and drops what the client still sends, so that it sees the answer. TLS has one end
        for both directions: there the client finds the end of the answer by its length."""
        self._held = b""
        self._enter(_State.CLOSING)
        if self._eof:
            self._close()
            return
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self._deadline(LINGER_SECONDS, self._close)
        self._pace()

    def _close(self) -> None:
        """Closes when all is written."""
        self._enter(_State.CLOSING)
        self._cancel_deadline()
        self.transport.close()
        self._deadline(WRITE_SECONDS, self.transport.abort)


def _address(transport: asyncio.Transport, name: str) -> tuple[str, int] | None:
    """Host and port; None for a Unix socket."""
    address = transport.get_extra_info(name)
    return (str(address[0]), int(address[1])) if isinstance(address, tuple) else None


def _hung_up(transport: asyncio.Transport) -> bool:
    """Whether the connection was reset, without reading from it."""
    poll = select.poll()
    poll.register(transport.get_extra_info("socket").fileno(), 0)  # errors and hang-ups are always reported
    return bool(poll.poll(0))
