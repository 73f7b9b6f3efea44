"""The wire of the prefix cache's events: live, replayed, and whole where too much has been missed."""

from __future__ import annotations

import msgspec
import pytest
import zmq
from support.router_device import add_request, make_limits

from lightllm.errors import StartupError
from lightllm.protocol.kv_events import END, AllBlocksCleared, BlockStored, KvEventBatch
from lightllm.router import kv_events
from lightllm.router.kv_events import KvEventPublisher
from lightllm.router.memory import block_ledger
from lightllm.router.memory.radix_cache import RadixCache
from lightllm.router.scheduler import Scheduler
from lightllm.server.listener import open_listener


class Cached:
    """A scheduler, as far as the publisher knows one."""

    def __init__(self) -> None:
        self.cache = RadixCache()

    def watch_cache(self, ledger) -> None:
        self.cache.ledger = ledger

    def cached_nodes(self):
        return self.cache.nodes()

    def store(self, first: int, count: int = 64) -> None:
        import numpy as np

        ids = np.arange(first, first + count, dtype=np.int32)
        self.cache.insert(ids, ids)


@pytest.fixture
def context():
    context = zmq.Context()
    yield context
    context.destroy(0)


@pytest.fixture
def endpoint() -> str:
    while True:
        with open_listener("127.0.0.1", 0) as one:
            port = one.getsockname()[1]
        try:
            open_listener("127.0.0.1", port + 1).close()
        except StartupError:
            continue
        return f"tcp://127.0.0.1:{port}"


@pytest.fixture
def publisher(context, endpoint):
    publisher = KvEventPublisher(context, endpoint, token_ids=False)
    yield publisher
    publisher.close()


def subscribe(context, endpoint) -> zmq.Socket:
    socket = context.socket(zmq.SUB)
    socket.subscribe(b"kv-events")
    socket.connect(endpoint)
    socket.rcvtimeo = 5000
    return socket


def replay(context, endpoint, publisher, first: int) -> list[tuple[int, KvEventBatch]]:
    host, port = endpoint.rsplit(":", 1)
    socket = context.socket(zmq.DEALER)
    socket.connect(f"{host}:{int(port) + 1}")
    socket.rcvtimeo = 5000
    socket.send_multipart([b"", first.to_bytes(8, "big")])
    assert publisher.replays.poll(5000)
    publisher.turn()
    batches = []
    while True:
        empty, number, data = socket.recv_multipart()
        assert empty == b""
        if number == END:
            return batches
        batches.append((int.from_bytes(number, "big"), msgspec.msgpack.decode(data, type=KvEventBatch)))


def stored(batches) -> list[int]:
    return [
        key
        for _, batch in batches
        for event in batch.events
        if isinstance(event, BlockStored)
        for key in event.block_hashes
    ]


def test_a_turn_publishes_what_has_happened_in_it_with_the_next_number(context, endpoint, publisher):
    scheduler, socket = Cached(), subscribe(context, endpoint)
    publisher.attach(scheduler)
    got: list[list[bytes]] = []
    while not got:  # the subscription is under way
        scheduler.store(1000 * len(got))
        publisher.turn()
        publisher.attach(scheduler := Cached())
        if socket.poll(50):
            got.append(socket.recv_multipart())
    while socket.poll(50):
        got.append(socket.recv_multipart())
    publisher.turn()
    scheduler.store(5)
    scheduler.store(500, 200)
    publisher.turn()
    publisher.turn()
    first, second = socket.recv_multipart(), socket.recv_multipart()
    assert not socket.poll(50)
    assert int.from_bytes(second[1], "big") == int.from_bytes(first[1], "big") + 1
    batch = msgspec.msgpack.decode(second[2])
    assert [event[0] for event in batch[1]] == ["BlockStored", "BlockStored"]  # vLLM's names and order
    tag, hashes, parent, token_ids, size, lora, medium = batch[1][1]
    assert (len(hashes), parent, token_ids, size, lora, medium) == (3, None, [], 64, None, "GPU")


def test_what_was_missed_is_replayed_and_what_is_kept_no_longer_is_told_as_a_whole(
    context, endpoint, publisher, monkeypatch
):
    scheduler = Cached()
    publisher.attach(scheduler)
    for first in (0, 1000, 2000):
        scheduler.store(first)
        publisher.turn()
    batches = replay(context, endpoint, publisher, 0)
    assert isinstance(batches[0][1].events[0], AllBlocksCleared)
    last = batches[-1][0]
    whole = stored(batches)
    assert len(whole) == 3
    assert stored(replay(context, endpoint, publisher, last)) == whole[-1:]
    assert replay(context, endpoint, publisher, last + 1) == []
    monkeypatch.setattr(kv_events, "_KEPT", 2)
    scheduler.cache.evict(64)
    scheduler.store(3000)
    publisher.turn()
    ((number, batch),) = replay(context, endpoint, publisher, last - 1)
    assert number == last + 1 and isinstance(batch.events[0], AllBlocksCleared)
    assert len(stored([(number, batch)])) == 3 and stored([(number, batch)])[:2] == whole[1:]


def test_a_real_schedulers_cache_is_watched_and_cleared_when_it_is_repaired(publisher, monkeypatch):
    monkeypatch.setattr(block_ledger, "BLOCK_TOKENS", 4)
    monkeypatch.setattr("lightllm.protocol.kv_events.BLOCK_BYTES", 16)
    scheduler = Scheduler(make_limits())
    publisher.attach(scheduler)
    assert publisher._ledger.take() == [AllBlocksCleared()]
    scheduler.add(add_request(1, list(range(20)), 4), 0.0)
    scheduler.next_round(0.0)
    (event,) = publisher._ledger.take()
    assert len(event.block_hashes) == 2  # a chunk of 8 tokens
    idle = Scheduler(make_limits())
    publisher.attach(idle)
    publisher._ledger.take()
    idle.repair()
    assert publisher._ledger.take() == [AllBlocksCleared()]


def test_an_address_that_is_taken_is_one_line(context, endpoint, publisher):
    with pytest.raises(StartupError, match="--kv_events"):
        KvEventPublisher(context, endpoint, token_ids=False)
