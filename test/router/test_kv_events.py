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


def test_however_much_was_missed_nothing_of_it_is_lost(context, endpoint, publisher):
    scheduler = Cached()
    publisher.attach(scheduler)
    for number in range(
        4000
    ):  # all of them are kept, and no socket holds so many for one that does not read yet
        scheduler.store(100 * number)
        publisher.turn()
    for first in (0, publisher._number - 3000, publisher._number - 700, publisher._number - 400):
        batches = replay(context, endpoint, publisher, first)
        whole = isinstance(batches[0][1].events[0], AllBlocksCleared)
        assert len(stored(batches)) == (4000 if whole else publisher._number - first + 1)
        assert batches[-1][0] == publisher._number


def test_batches_too_large_to_be_kept_are_told_as_a_whole(context, endpoint, publisher, monkeypatch):
    monkeypatch.setattr(kv_events, "_KEPT_BYTES", 10)
    scheduler = Cached()
    publisher.attach(scheduler)
    scheduler.store(0)
    publisher.turn()
    ((number, batch),) = replay(context, endpoint, publisher, publisher._number)
    assert number == publisher._number and len(stored([(number, batch)])) == 1


def test_who_knows_numbers_of_another_life_is_told_what_there_is(context, endpoint, publisher):
    publisher.attach(Cached())
    publisher.turn()
    ((number, batch),) = replay(context, endpoint, publisher, publisher._number + 1000)
    assert number == publisher._number and batch.events == [AllBlocksCleared()]


def test_a_flood_of_questions_delays_neither_a_turn_nor_those_of_others(context, endpoint, publisher):
    scheduler = Cached()
    publisher.attach(scheduler)
    for number in range(600):
        scheduler.store(100 * number)
        publisher.turn()
    host, port = endpoint.rsplit(":", 1)
    flood = context.socket(zmq.DEALER)
    flood.sndtimeo = flood.rcvtimeo = 5000
    flood.connect(f"{host}:{int(port) + 1}")
    for number in range(500):
        flood.send_multipart([b"", (publisher._number - 500).to_bytes(8, "big")])
        flood.send_multipart([b"x" * (number % 60)])
    answered = []
    publisher._replay = lambda asker, first: answered.append(asker)
    assert publisher.replays.poll(5000)
    publisher.turn()
    assert len(answered) <= 1
    del publisher._replay
    for _ in range(20):  # an answer that nobody reads ends where the socket holds no more
        publisher.turn()
    other = context.socket(zmq.DEALER)
    other.connect(f"{host}:{int(port) + 1}")
    other.send_multipart([b"", (publisher._number + 1).to_bytes(8, "big")])
    for _ in range(200):
        publisher.turn()
        if other.poll(20):
            break
    assert other.recv_multipart(zmq.NOBLOCK)[1] == END


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
