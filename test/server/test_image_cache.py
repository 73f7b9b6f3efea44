"""Images through real processes: Cache Manager, Visual Servers with a scripted encoder, and the test as two Http Servers."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import subprocess
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from support.child_processes import ChildProcesses
from support.scripted_visual import WIDTH, embedding_of, gate_of

from lightllm.config import ServerConfig
from lightllm.errors import InvalidParameter, ServerOverloaded
from lightllm.httpserver.encode_tickets import EncodeTickets, server_of
from lightllm.ipc.channels import EVERY_EPOCH, PullChannel, PushChannel, make_context
from lightllm.ipc.image_cache import ImageCache
from lightllm.ipc.image_files import largest_size
from lightllm.protocol import codec
from lightllm.protocol.images import (
    CacheStats,
    Encoded,
    EncodeItem,
    EncoderProgress,
    EncoderReady,
    Held,
    Want,
)

SECONDS = 60
CAPACITY = 20
WORKERS = 2
CLIENTS = 8
"""Of the long test: each has one request under way."""
BACK_SECONDS = 10.0
"""Within which requests are answered that waited for a process that was killed, counted from its return."""


class Server:
    def __init__(self, folder: Path, log: Path, visual_dp: int = 1) -> None:
        config = ServerConfig(
            cache_capacity=CAPACITY, cache_capacity_bytes=4 << 20, httpserver_workers=WORKERS, visual_infer_batch_size=3,
            visual_dp=visual_dp,
        )  # fmt: skip
        self._log = log
        self.children = ChildProcesses(folder, config)
        self.runtime = self.children.runtime
        self.runtime.images_dir.mkdir()
        self.start_cache()
        self.visual = [self.start_visual(rank) for rank in range(visual_dp)]

    def start_cache(self) -> None:
        self.cache = self.children.start("lightllm.cache")

    def start_visual(self, rank: int = 0) -> subprocess.Popen[bytes]:
        return self.children.start("support.scripted_visual", str(rank))

    def restart_visual(self, rank: int = 0) -> None:
        self.children.kill(self.visual[rank])
        self.visual[rank] = self.start_visual(rank)

    def files(self) -> list[Path]:
        return [path for path in self.runtime.images_dir.iterdir() if path.name != "ids"]

    def encoded(self) -> list[bytes]:
        """What encoders were given, in order."""
        return [line.partition(b" ")[2] for line in self._log.read_bytes().splitlines()]

    def encoded_by(self, rank: int) -> set[bytes]:
        lines = (line.partition(b" ") for line in self._log.read_bytes().splitlines())
        return {image for name, _, image in lines if int(name) == rank}

    def let_go(self, *images: bytes) -> None:
        """Images whose encodes are held are done."""
        for image in images:
            gate_of(self._log, image).touch()


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What the encoders write down."""
    path = tmp_path / "encoded"
    path.touch()
    monkeypatch.setenv("SCRIPTED_LOG", str(path))
    monkeypatch.setenv(
        "PYTHONPATH", os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    )
    return path


@pytest.fixture
def server(log: Path, tmp_path: Path) -> Iterator[Server]:
    server = Server(tmp_path, log)
    yield server
    server.children.close()
    assert not server.runtime.path.exists()


@pytest.fixture
def two_encoders(log: Path, tmp_path: Path) -> Iterator[Server]:
    server = Server(tmp_path, log, visual_dp=2)
    yield server
    server.children.close()


class Worker:
    """An Http Server's side of images."""

    def __init__(self, server: Server, number: int) -> None:
        self.cache = ImageCache(server.runtime, number)
        self._context = make_context()
        intakes = map(server.runtime.visual_intake, range(server.children.config.visual_dp))
        channels = [PushChannel(self._context, intake, EVERY_EPOCH) for intake in intakes]
        self._tickets = EncodeTickets(number, [channel.send for channel in channels])
        self._results = PullChannel(
            self._context, server.runtime.http_results(number), codec.to_http, EVERY_EPOCH
        )
        self._results.on_message(asyncio.get_running_loop(), self._receive)
        self.encoders: Counter[int] = Counter()
        """How often each Visual Server has started."""

    def _receive(self, message: object) -> None:
        if isinstance(message, EncoderReady):
            self.encoders[message.rank] += 1
            self._tickets.on_ready(message)
        elif isinstance(message, EncoderProgress):
            self._tickets.on_progress(message)
        elif isinstance(message, Encoded):
            self._tickets.on_encoded(message)

    async def request(
        self, images: list[bytes], check: Callable[[], object] = lambda: None
    ) -> dict[int, str]:
        """A request with these images, from hold to release; what a backend would read is compared with what it must be. Returns
        what could not be encoded."""
        wants = [want(image) for image in images]
        held = (await self.cache.hold(wants, SECONDS)).items
        try:
            for image, item in zip(images, held, strict=True):
                if not item.has_data and not item.has_embedding:
                    await asyncio.wrap_future(self.cache.store(item.item_id, image))
            errors = await self._tickets.encode(
                [EncodeItem(i.item_id, w.key, i.first_id, i.tokens) for w, i in zip(wants, held, strict=True)]
            )
            check()
            for image, item in zip(images, held, strict=True):
                if item.item_id not in errors:
                    assert_embedding(self.cache, image, item)
            return errors
        finally:
            await asyncio.wrap_future(self.cache.release([item.item_id for item in held]))

    def close(self) -> None:
        self.cache.close()
        self._context.destroy(linger=0)


def want(image: bytes) -> Want:
    tokens = 1 + len(image) % 5
    size = largest_size(len(image), [tokens, WIDTH], "float32")
    return Want(hashlib.sha256(image).hexdigest(), tokens, size)


def assert_embedding(cache: ImageCache, image: bytes, item: Held) -> None:
    embedding = cache.files.open_embedding(item.item_id)
    array = np.frombuffer(embedding.map, np.float32, offset=embedding.offset).reshape(embedding.header.shape)
    assert embedding.header.first_id == item.first_id
    assert np.array_equal(array, embedding_of(image, item.tokens))


def run(server: Server, main: Callable[[Worker, Worker], Awaitable[None]]) -> None:
    async def with_workers() -> None:
        workers = [Worker(server, number) for number in range(WORKERS)]
        try:
            await asyncio.wait_for(main(*workers), SECONDS)
        finally:
            left = asyncio.all_tasks() - {asyncio.current_task()}
            for task in left:
                task.cancel()
            if left:
                await asyncio.wait(left, timeout=5)
            for worker in workers:
                worker.close()

    asyncio.run(with_workers())


async def stats_until(worker: Worker, condition: Callable[[CacheStats], bool]) -> None:
    while not condition(await asyncio.wrap_future(worker.cache.stats())):
        await asyncio.sleep(0.01)


async def until(condition: Callable[[], object]) -> None:
    while not condition():
        await asyncio.sleep(0.005)


def test_ten_requests_with_one_new_image_are_one_encode_and_a_bad_image_fails_alone(server):
    async def main(one: Worker, two: Worker) -> None:
        image = b"an image"
        requests = [(one, two)[number % 2].request([image]) for number in range(10)]
        bad = one.request([b"bad image", b"good image"])
        *answers, mixed = await asyncio.gather(*requests, bad)
        assert not any(answers)
        assert list(mixed.values()) == ["RuntimeError: a bad image"]
        assert Counter(server.encoded()) == {image: 1, b"good image": 1}
        await two.request([image])
        await stats_until(one, lambda stats: (stats.items, stats.references) == (2, 0))
        assert len(server.files()) == 2, "the data of what is encoded, and the bad image, are gone"

    run(server, main)


def test_a_full_cache_is_waited_for_and_then_refused_and_what_never_fits_is_an_error(server):
    async def main(one: Worker, two: Worker) -> None:
        images = [b"image %d" % number for number in range(CAPACITY + 1)]
        held = await one.cache.hold([want(image) for image in images[:CAPACITY]], SECONDS)
        with pytest.raises(ServerOverloaded, match="all 20 images") as refused:
            await two.cache.hold([want(images[-1])], 0.05)
        assert refused.value.retry_after
        with pytest.raises(InvalidParameter, match="21 images do not fit"):
            await two.cache.hold([want(image) for image in images], SECONDS)
        waiting = asyncio.create_task(two.cache.hold([want(images[-1])], SECONDS))
        one.cache.release([held.items[0].item_id])
        assert len((await waiting).items) == 1
        await stats_until(one, lambda stats: (stats.items, stats.references) == (CAPACITY, CAPACITY))
        one.cache.close()
        await stats_until(two, lambda stats: (stats.items, stats.references) == (1, 1))

    run(server, main)


def test_a_hold_that_is_cancelled_at_any_moment_holds_nothing(server):
    async def main(one: Worker, two: Worker) -> None:
        await asyncio.wrap_future(one.cache.stats())
        cancelled = 0
        for number in range(100):
            hold = asyncio.create_task(one.cache.hold([want(b"an image")], SECONDS))
            await asyncio.sleep(number * 2e-5)
            was_waiting = hold.cancel()
            try:
                items = (await hold).items
                assert not was_waiting, "the cancellation was lost"
                one.cache.release([item.item_id for item in items])
            except asyncio.CancelledError:
                cancelled += 1
        assert cancelled
        await stats_until(two, lambda stats: (stats.items, stats.references) == (0, 0))

    run(server, main)


def test_500_requests_with_60_images_and_kills_in_the_middle(server):
    """Nothing that is referenced is evicted, shared memory stays bounded, and every request is answered, soon after the return of what
    was killed."""
    images = [b"image %d of many" % number for number in range(100)]
    most = 0
    done = 0

    def check() -> None:
        nonlocal most
        most = max(most, len(server.files()))

    async def client(worker: Worker, numbers: list[int]) -> None:
        nonlocal done
        for number in numbers:
            chosen = [images[number * 7 % 60], images[number * number % 60]][: 1 + number % 2]
            assert not await worker.request(chosen, check)
            done += 1

    async def all_that_wait_are_answered() -> None:
        before = done
        async with asyncio.timeout(BACK_SECONDS):
            await until(lambda: done >= before + CLIENTS)

    async def kill(worker: Worker) -> None:
        await until(lambda: done >= 150)
        server.children.kill(server.cache)
        server.start_cache()
        await asyncio.wrap_future(worker.cache.stats())
        await all_that_wait_are_answered()
        await until(lambda: done >= 300)
        server.restart_visual()
        await until(lambda: worker.encoders[0] == 2)
        await all_that_wait_are_answered()

    async def main(one: Worker, two: Worker) -> None:
        clients = [
            client((one, two)[first % 2], list(range(first, 500, CLIENTS))) for first in range(CLIENTS)
        ]
        await asyncio.gather(kill(one), *clients)
        assert done == 500 and one.encoders[0] == 2
        assert most <= 2 * CAPACITY
        await stats_until(two, lambda stats: stats.references == 0 and stats.items <= CAPACITY)
        stats = await asyncio.wrap_future(one.cache.stats())
        assert stats.restored and stats.evicted
        assert len(server.files()) == stats.items
        assert sum(path.stat().st_size for path in server.files()) == stats.size

    run(server, main)


def test_what_is_held_keeps_its_ids_and_files_when_the_cache_manager_is_killed(server):
    async def main(one: Worker, two: Worker) -> None:
        encoded, unwritten = b"an encoded image", b"an image whose bytes are not written yet"
        await one.request([encoded])
        while not (first := (await one.cache.hold([want(encoded)], SECONDS)).items[0]).has_embedding:
            await asyncio.wrap_future(one.cache.release([first.item_id]))  # the client is told first
        before = [first, *(await one.cache.hold([want(unwritten)], SECONDS)).items]
        server.children.kill(server.cache)
        waiting = asyncio.create_task(two.cache.hold([want(b"a new one")], SECONDS))
        server.start_cache()
        (new,) = (await waiting).items
        again = (await one.cache.hold([want(encoded), want(unwritten)], SECONDS)).items
        assert again == before and again[0].has_embedding
        assert new.first_id > max(item.first_id for item in before)
        await one.request([encoded, unwritten])
        assert Counter(server.encoded()) == {encoded: 1, unwritten: 1}
        one.cache.release([item.item_id for item in before])
        one.cache.release([item.item_id for item in before])
        await stats_until(two, lambda stats: (stats.items, stats.references) == (3, 1))

    run(server, main)


def test_the_cache_manager_and_the_visual_server_stop_when_told_in_the_middle_of_an_encode(server):
    async def main(one: Worker, two: Worker) -> None:
        request = asyncio.create_task(one.request([b"held image"]))
        await until(server.encoded)
        assert server.children.stop(server.visual[0]) == 0
        assert server.children.stop(server.cache) == 0
        request.cancel()

    run(server, main)


def test_what_a_request_that_ends_waited_for_leaves_the_queue_and_the_cache_unless_others_want_it(server):
    async def main(one: Worker, two: Worker) -> None:
        first, batch = b"held first", [b"held %d" % number for number in range(3)]
        encoding = [asyncio.create_task(one.request([first]))]
        await until(server.encoded)
        encoding += [asyncio.create_task(one.request(batch))]
        await stats_until(one, lambda stats: stats.references == 4)
        leaving = [asyncio.create_task(worker.request([b"left", b"shared"])) for worker in (one, two)]
        staying = asyncio.create_task(two.request([b"shared"]))
        await stats_until(one, lambda stats: (stats.items, stats.references) == (6, 9))
        for request in leaving:
            request.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await request
        await stats_until(one, lambda stats: stats.references == 5)
        server.let_go(first)
        await until(lambda: batch[0] in server.encoded())
        server.let_go(*batch)
        assert not any(await asyncio.gather(*encoding, staying))
        assert server.encoded() == [first, *batch, b"shared"]
        assert not await one.request([b"left"])

    run(server, main)


def test_two_visual_servers_share_the_images_and_one_that_is_killed_is_waited_for_alone(two_encoders):
    server = two_encoders
    images = [b"image %d" % number for number in range(CAPACITY)]

    async def main(one: Worker, two: Worker) -> None:
        await until(lambda: one.encoders[0] and one.encoders[1])
        await asyncio.gather(*(worker.request(images) for worker in (one, two) * 5))
        assert Counter(server.encoded()) == Counter(images)
        of_0, of_1 = server.encoded_by(0), server.encoded_by(1)
        assert of_0 and of_1 and not of_0 & of_1

        held = next(image for n in range(99) if server_of(want(image := b"held %d" % n).key, 2) == 0)
        waiting = asyncio.create_task(one.request([held]))
        await until(lambda: held in server.encoded())
        server.restart_visual(0)
        others = [image for n in range(20) if server_of(want(image := b"new %d" % n).key, 2) == 1]
        assert others and not await two.request(others)
        await until(lambda: server.encoded().count(held) == 2)
        server.let_go(held)
        assert not await waiting
        assert (one.encoders[0], one.encoders[1]) == (2, 1)

    run(server, main)
