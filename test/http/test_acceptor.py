"""Connections are taken as long as there are descriptors for them; the others wait."""

from __future__ import annotations

import asyncio
import resource
import socket
from collections.abc import Awaitable, Callable

import pytest
import uvloop

from lightllm.http.acceptor import Acceptor, connection_limit


class Greeter(asyncio.Protocol):
    """Says hello, echoes, and counts itself."""

    def __init__(self, connections: set) -> None:
        self._connections = connections

    def connection_made(self, transport) -> None:
        self.transport = transport
        self._connections.add(self)
        transport.write(b"hello")

    def connection_lost(self, error) -> None:
        self._connections.discard(self)


def run(limit: int, test: Callable[[Acceptor, tuple[str, int], set], Awaitable[None]]) -> None:
    async def main() -> None:
        connections: set[Greeter] = set()
        listener = socket.create_server(("127.0.0.1", 0), backlog=100)
        address = listener.getsockname()
        acceptor = Acceptor(listener, lambda: Greeter(connections), connections, limit)
        try:
            async with asyncio.timeout(30):
                await test(acceptor, address, connections)
        finally:
            acceptor.close()
            for greeter in list(connections):
                greeter.transport.abort()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())


async def connect(address: tuple[str, int]) -> socket.socket:
    client = socket.socket()
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
