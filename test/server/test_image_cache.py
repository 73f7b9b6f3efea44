"""Images through real processes: Cache Manager, Visual Server with a scripted encoder, and the test as two Http Servers."""

from __future__ import annotations

import asyncio
import hashlib
import os
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from support.child_processes import ChildProcesses
from support.scripted_visual import WIDTH, embedding_of

from lightllm.config import ServerConfig
from lightllm.errors import InvalidParameter, ServerOverloaded
from lightllm.ipc.channels import EVERY_EPOCH, PullChannel, PushChannel, make_context
from lightllm.ipc.image_cache import ImageCache
from lightllm.ipc.image_files import largest_size
from lightllm.protocol import codec
from lightllm.protocol.images import Encode, Encoded, EncodeItem, EncoderReady, Held, Want

SECONDS = 60
CAPACITY = 20
WORKERS = 2


class Server:
    def __init__(self, folder: Path) -> None:
        config = ServerConfig(
            cache_capacity=CAPACITY, cache_capacity_bytes=4 << 20, httpserver_workers=WORKERS, visual_infer_batch_size=3
        )  # fmt: skip
        self.children = ChildProcesses(folder, config)
        self.runtime = self.children.runtime
        self.runtime.images_dir.mkdir()
        self.start_cache()
        self.start_visual()

    def start_cache(self) -> None:
        self.cache = self.children.start("lightllm.cache")

    def start_visual(self) -> None:
        self.visual = self.children.start("support.scripted_visual")

    def files(self) -> list[Path]:
        return [path for path in self.runtime.images_dir.iterdir() if path.name != "ids"]


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What the encoder was given, a line an image."""
    path = tmp_path / "encoded"
    path.touch()
    monkeypatch.setenv("SCRIPTED_LOG", str(path))
    monkeypatch.setenv(
        "PYTHONPATH", os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    )
    return path


@pytest.fixture
def server(log: Path, tmp_path: Path) -> Iterator[Server]:
    server = Server(tmp_path)
    yield server
    server.children.close()
    assert not server.runtime.path.exists()


class Worker:
    """An Http Server's side of images."""

    def __init__(self, server: Server, number: int) -> None:
        self.number = number
        self.cache = ImageCache(server.runtime, number)
        self._context = make_context()
        self._visual = PushChannel(self._context, server.runtime.visual_intake(0), EVERY_EPOCH)
        self._results = PullChannel(
            self._context, server.runtime.http_results(number), codec.to_http, EVERY_EPOCH
        )
        self._results.on_message(asyncio.get_running_loop(), self._receive)
        self._open: dict[int, tuple[Encode, asyncio.Future[Encoded]]] = {}
        self.encoders = 0
        """How often a Visual Server has started."""

    def _receive(self, message: object) -> None:
        if isinstance(message, EncoderReady):
            self.encoders += 1
            for request, _ in self._open.values():
                self._visual.send(request)
        elif isinstance(message, Encoded) and message.ticket in self._open:
            self._open.pop(message.ticket)[1].set_result(message)

    async def encode(self, keys: list[str], items: list[Held]) -> Encoded:
        ticket = time.monotonic_ns()
        request = Encode(
            self.number, ticket,
            [EncodeItem(item.item_id, key, item.first_id, item.tokens) for key, item in zip(keys, items, strict=True)],
        )  # fmt: skip
        answer: asyncio.Future[Encoded] = asyncio.get_running_loop().create_future()
        self._open[ticket] = request, answer
        self._visual.send(request)
        return await answer

    async def request(self, images: list[bytes], check: Callable[[], object] = lambda: None) -> Encoded:
        """A request with these images, from hold to release; what a backend would read is compared with what it must be."""
        wants = [want(image) for image in images]
        items = (await self.cache.hold(wants, SECONDS)).items
        try:
            for image, item in zip(images, items, strict=True):
                if not item.has_data and not item.has_embedding:
                    await asyncio.wrap_future(self.cache.store(item.item_id, image))
            answer = await self.encode([w.key for w in wants], items)
            check()
            for image, item in zip(images, items, strict=True):
                if item.item_id not in answer.errors:
                    assert_embedding(self.cache, image, item)
            return answer
        finally:
            await asyncio.wrap_future(self.cache.release([item.item_id for item in items]))

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
            for worker in workers:
                worker.close()

    asyncio.run(with_workers())


async def stats_until(worker: Worker, condition: Callable[[object], bool]) -> None:
    while not condition(await asyncio.wrap_future(worker.cache.stats())):
        await asyncio.sleep(0.01)


def test_ten_requests_with_one_new_image_are_one_encode_and_a_bad_image_fails_alone(server, log):
    async def main(one: Worker, two: Worker) -> None:
        image = b"slow image"
        requests = [(one, two)[number % 2].request([image]) for number in range(10)]
        bad = one.request([b"bad image", b"good image"])
        *answers, mixed = await asyncio.gather(*requests, bad)
        assert all(not answer.errors for answer in answers)
        assert list(mixed.errors.values()) == ["RuntimeError: a bad image"]
        assert Counter(log.read_bytes().splitlines()) == {image: 1, b"good image": 1}
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


def test_500_requests_with_60_images_and_kills_in_the_middle(server, log):
    """Nothing that is referenced is evicted, shared memory stays bounded, and every request is answered."""
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
            assert not (await worker.request(chosen, check)).errors
            done += 1

    async def kill() -> None:
        while done < 150:
            await asyncio.sleep(0.002)
        server.children.kill(server.cache)
        server.start_cache()
        while done < 300:
            await asyncio.sleep(0.002)
        server.children.kill(server.visual)
        server.start_visual()

    async def main(one: Worker, two: Worker) -> None:
        clients = [client((one, two)[first % 2], list(range(first, 500, 8))) for first in range(8)]
        await asyncio.gather(kill(), *clients)
        assert done == 500 and one.encoders == 2
        assert most <= 2 * CAPACITY
        await stats_until(two, lambda stats: stats.references == 0 and stats.items <= CAPACITY)
        stats = await asyncio.wrap_future(one.cache.stats())
        assert stats.restored and stats.evicted
        assert len(server.files()) == stats.items
        assert sum(path.stat().st_size for path in server.files()) == stats.size

    run(server, main)


def test_what_is_held_keeps_its_ids_and_files_when_the_cache_manager_is_killed(server, log):
    async def main(one: Worker, two: Worker) -> None:
        encoded, unwritten = b"an encoded image", b"an image whose bytes are not written yet"
        await one.request([encoded])
        before = (await one.cache.hold([want(encoded), want(unwritten)], SECONDS)).items
        server.children.kill(server.cache)
        waiting = asyncio.create_task(two.cache.hold([want(b"a new one")], SECONDS))
        server.start_cache()
        (new,) = (await waiting).items
        again = (await one.cache.hold([want(encoded), want(unwritten)], SECONDS)).items
        assert again == before and again[0].has_embedding
        assert new.first_id > max(item.first_id for item in before)
        await one.request([encoded, unwritten])
        assert Counter(log.read_bytes().splitlines()) == {encoded: 1, unwritten: 1}
        one.cache.release([item.item_id for item in before])
        one.cache.release([item.item_id for item in before])
        await stats_until(two, lambda stats: (stats.items, stats.references) == (3, 1))

    run(server, main)


def test_the_cache_manager_and_the_visual_server_stop_when_told_in_the_middle_of_an_encode(server, log):
    async def main(one: Worker, two: Worker) -> None:
        request = asyncio.create_task(one.request([b"slow image"]))
        while not log.read_bytes():
            await asyncio.sleep(0.005)
        assert server.children.stop(server.visual) == 0
        assert server.children.stop(server.cache) == 0
        request.cancel()

    run(server, main)
