"""`Exchange.write_parts`, the way past the application's layers: when it is open, and what it writes."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from lightllm.http.exchange import Exchange


class Transport:
    def __init__(self) -> None:
        self.written: list[bytes] = []

    def write(self, data: bytes) -> None:
        self.written.append(data)


class Connection:
    default_headers = ()

    def __init__(self) -> None:
        self.transport: Any = Transport()
        self.write_paused = False

    async def writable(self) -> None: ...

    def wants_body(self) -> None: ...

    def answered(self) -> None: ...


def begun(version: str = "1.1", headers: tuple[tuple[bytes, bytes], ...] = ()) -> tuple[Exchange, Connection]:
    """An answer whose head is written."""
    connection = Connection()
    exchange = Exchange(connection, {"method": "POST", "http_version": version}, True, False)
    asyncio.run(exchange.send({"type": "http.response.start", "status": 200, "headers": headers}))
    connection.transport.written.clear()
    return exchange, connection


def test_every_part_is_a_chunk_of_its_own() -> None:
    exchange, connection = begun()
    assert exchange.write_parts(lambda: [b"one", b"a longer part"]) == 2
    assert connection.transport.written == [b"3\r\none\r\n", b"d\r\na longer part\r\n"]


def test_an_event_may_become_no_part() -> None:
    exchange, connection = begun()
    assert exchange.write_parts(list) == 0 and connection.transport.written == []


@pytest.mark.parametrize("why", ["slow", "gone", "complete", "1.0", "counted", "no head"])
def test_nothing_is_made_where_it_could_not_be_written_at_once(why: str) -> None:
    if why == "no head":
        connection = Connection()
        exchange = Exchange(connection, {"method": "POST", "http_version": "1.1"}, True, False)
    else:
        headers = ((b"content-length", b"5"),) if why == "counted" else ()
        exchange, connection = begun("1.0" if why == "1.0" else "1.1", headers)
    connection.write_paused = why == "slow"
    if why == "gone":
        exchange.leave()
    if why == "complete":
        asyncio.run(exchange.send({"type": "http.response.body", "body": b""}))
        connection.transport.written.clear()

    def make() -> list[bytes]:
        pytest.fail("was made, and would be lost")

    assert exchange.write_parts(make) is None and connection.transport.written == []
