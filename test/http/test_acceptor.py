"""Connections are taken as long as there are descriptors for them; the others wait."""

from __future__ import annotations

import asyncio
import functools
import os
import resource
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import uvloop

from lightllm.http import acceptor as acceptor_module
from lightllm.http.acceptor import Acceptor, connection_limit
from lightllm.http.client_connections import ClientConnections, client_of
from lightllm.http.connection_counts import ConnectionCounts
from lightllm.http.tls import ServerTls

PEM = Path(__file__).parents[1] / "support" / "tls"


class Greeter(asyncio.Protocol):
    """Says hello, echoes, and counts itself."""

    def __init__(self, connections: set, on_lost: Callable[[], None]) -> None:
        self._connections = connections
        self._on_lost = on_lost

    def connection_made(self, transport) -> None:
        self.transport = transport
        self._connections.add(self)
        transport.write(b"hello")

    def connection_lost(self, error) -> None:
        self._connections.discard(self)
        self._on_lost()


def run(
    limit: int, test: Callable[[Acceptor, tuple[str, int], set], Awaitable[None]], **options: object
) -> None:
    async def main() -> None:
        connections: set[Greeter] = set()
        listener = socket.create_server(("127.0.0.1", 0), backlog=100)
        address = listener.getsockname()
        acceptor = Acceptor(listener, functools.partial(Greeter, connections), connections, limit, **options)  # type: ignore[arg-type]
        try:
            async with asyncio.timeout(30):
                await test(acceptor, address, connections)
        finally:
            acceptor.close()
            for greeter in list(connections):
                greeter.transport.abort()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())


async def connect(address: tuple[str, int], own: str = "127.0.0.1") -> socket.socket:
    """own: the client's address."""
    client = socket.socket()
    client.bind((own, 0))
    client.setblocking(False)
    await asyncio.get_running_loop().sock_connect(client, address)
    return client


async def heard(client: socket.socket) -> bytes:
    return await asyncio.get_running_loop().sock_recv(client, 5)


def test_connections_beyond_the_limit_wait_until_others_end() -> None:
    async def test(acceptor, address, connections) -> None:
        clients = [await connect(address) for _ in range(30)]
        assert [await heard(client) for client in clients[:3]] == [b"hello"] * 3
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3):
                await heard(clients[3])
        assert len(connections) == 3
        for number in range(3, 30):
            clients[number - 3].close()
            assert await heard(clients[number]) == b"hello"
            assert len(connections) <= 3
        for client in clients:
            client.close()

    run(3, test)


def test_clients_that_leave_before_they_are_taken_disturb_nobody() -> None:
    async def test(acceptor, address, connections) -> None:
        first = await connect(address)
        assert await heard(first) == b"hello"
        for _ in range(20):
            (await connect(address)).close()
        last = await connect(address)
        first.close()
        assert await heard(last) == b"hello"
        last.close()

    run(1, test)


def test_a_closed_acceptor_takes_nobody_and_keeps_who_is_there() -> None:
    async def test(acceptor, address, connections) -> None:
        client = await connect(address)
        assert await heard(client) == b"hello"
        acceptor.close()
        with pytest.raises(ConnectionRefusedError):
            await connect(address)
        assert len(connections) == 1
        client.close()

    run(5, test)


@pytest.mark.parametrize("limit", [32, 64, 256, 4096])
def test_the_limit_leaves_descriptors_for_the_server_itself(monkeypatch, limit) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (limit, limit))
    monkeypatch.setattr("os.listdir", lambda folder: ["fd"] * 20)
    connections = connection_limit()
    assert 4 <= connections <= limit - 20 - min(8, limit // 4)
    assert connections >= min(4, limit) and (limit < 4096 or connections == limit - 20 - 64)


class Others:
    """The counts of two workers, of which this is one."""

    def __init__(self, other: int) -> None:
        self.own = 0
        self.other = other

    def publish(self, connections: int) -> None:
        self.own = connections

    def least_of_others(self) -> int:
        return self.other


def test_a_worker_with_more_connections_leaves_the_next_one_to_others_and_takes_it_when_they_do_not() -> None:
    async def main() -> None:
        connections: set[Greeter] = set()
        listener = socket.create_server(("127.0.0.1", 0), backlog=100)
        address, others = listener.getsockname(), Others(other=1)
        sibling = socket.socket(fileno=os.dup(listener.fileno()))
        sibling.setblocking(False)
        acceptor = Acceptor(
            listener, functools.partial(Greeter, connections), connections, 50, counts=others  # type: ignore[arg-type]
        )  # fmt: skip
        try:
            async with asyncio.timeout(30):
                clients = [await connect(address) for _ in range(2)]
                assert [await heard(client) for client in clients] == [b"hello"] * 2
                others.other = 0  # has less now, and is quicker than this one's look
                clients.append(await connect(address))
                taken, _ = sibling.accept()
                taken.close()
                clients.append(await connect(address))  # nobody else takes this one
                assert await heard(clients[-1]) == b"hello" and len(connections) == 3
                assert others.own >= 2
        finally:
            acceptor.close()
            sibling.close()
            for greeter in list(connections):
                greeter.transport.abort()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())


def test_counts_are_shared_between_workers(tmp_path: Path) -> None:
    made = ConnectionCounts(tmp_path / "counts", 3)
    workers = [ConnectionCounts(tmp_path / "counts", 3, own) for own in range(3)]
    for worker, number in zip(workers, (5, 2, 7), strict=True):
        worker.publish(number)
    assert [worker.least_of_others() for worker in workers] == [2, 5, 2]
    assert made.least_of_others() == 2
    alone = ConnectionCounts(tmp_path / "alone", 1)
    alone.publish(4)
    assert alone.least_of_others() == 4


def test_a_client_with_as_many_connections_as_it_may_have_is_turned_away_and_others_are_not(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def test(acceptor, address, connections) -> None:
        clients = [await connect(address, "127.0.0.2") for _ in range(2)]
        assert [await heard(client) for client in clients] == [b"hello"] * 2
        for _ in range(20):
            assert await heard(await connect(address, "127.0.0.2")) == b""
        others = [await connect(address) for _ in range(2)]
        assert [await heard(client) for client in others] == [b"hello"] * 2
        clients[0].close()
        while len(connections) > 3:
            await asyncio.sleep(0.01)
        assert await heard(await connect(address, "127.0.0.2")) == b"hello"

    limited = ClientConnections(2)
    run(50, test, clients=limited)
    assert len(limited) == 0
    assert caplog.text.count("turned away") == 1 and "127.0.0.2, which has 2 already" in caplog.text


def test_a_client_that_does_not_finish_its_handshake_loses_its_connection(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(acceptor_module, "HANDSHAKE_SECONDS", 0.2)

    async def test(acceptor, address, connections) -> None:
        client = await connect(address)
        await asyncio.get_running_loop().sock_sendall(client, b"\x16\x03\x01\x02")
        assert await heard(client) == b"" and not connections

    run(50, test, tls=ServerTls(str(PEM / "cert.pem"), str(PEM / "key.pem")))


def test_connections_whose_handshake_fails_do_not_count_for_ever() -> None:
    async def test(acceptor, address, connections) -> None:
        for _ in range(5):
            client = await connect(address)
            await asyncio.get_running_loop().sock_sendall(client, b"GET / HTTP/1.1\r\n\r\n")
            while await heard(client):
                pass
            while len(limited):
                await asyncio.sleep(0.01)
        assert not connections

    limited = ClientConnections(1)
    tls = ServerTls(str(PEM / "cert.pem"), str(PEM / "key.pem"))
    run(50, test, clients=limited, tls=tls)


def test_a_client_is_an_address_or_what_a_subscriber_has_of_ipv6() -> None:
    assert client_of(("192.0.2.1", 5)) == client_of(("::ffff:192.0.2.1", 5, 0, 0)) == "192.0.2.1"
    assert (
        client_of(("2001:db8::1", 5, 0, 0)) == client_of(("2001:db8::ffff:0:0:2", 6, 0, 0)) == "2001:db8::/64"
    )
    assert client_of(("2001:db8:0:1::1", 5, 0, 0)) != "2001:db8::/64"
    assert client_of(("fe80::1%eth0", 5, 0, 2)) == "fe80::/64" and client_of("") == client_of(None)
