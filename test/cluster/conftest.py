"""Workers that are only numbers, and requests of a given prompt; real controllers, and workers whose answers a test decides on."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Coroutine, Iterator

import pytest
from aiohttp import web

from lightllm.cluster.ask import Ask, ask_of
from lightllm.cluster.config import ControllerConfig
from lightllm.cluster.registry import Registry
from lightllm.cluster.service import Controller
from lightllm.cluster.worker import Description, Worker
from lightllm.server.listener import url_of


def describe(number: int, models: tuple[str, ...] = ("m",), **more) -> Description:
    return Description(f"http://127.0.0.1:{21000 + number}", models, **more)


def make_workers(count: int, **more) -> list[Worker]:
    return [Worker(describe(number, **more), 0.0) for number in range(count)]


def ask(prompt: str, model: str = "m", session: str = "", output: int = 16) -> Ask:
    return ask_of({"prompt": prompt, "max_tokens": output}, model, session)


class Serving:
    """An event loop in a thread of its own, in which something serves."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()

    def run(self, coroutine: Coroutine, seconds: float = 30.0):
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(seconds)

    def end(self) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(10)
        self.loop.close()


class MockWorker(Serving):
    """A server with OpenAI's API whose answers a test decides on."""

    more_paths: tuple[str, ...] = ()
    """Routes that `_list` answers, too."""

    def __init__(self, models: tuple[str, ...] = ("m",)) -> None:
        super().__init__()
        self.models = models
        self.parts = [b'data: {"n": 0}\n\n', b'data: {"n": 1}\n\n', b"data: [DONE]\n\n"]
        """Of a streamed answer."""
        self.status = 200
        self.breaks_after: int | None = None
        """Parts, after which the connection is cut off."""
        self.waits = asyncio.Event()
        """Set: nothing waits."""
        self.waits_before = 0
        """The first part that waits."""
        self.waits.set()
        self.seen: list[dict] = []
        self.headers: list[dict[str, str]] = []
        self.left = threading.Event()
        """A client left before its answer had ended."""
        self.healthy = True
        self.run(self._start())

    async def _start(self) -> None:
        app = web.Application()
        app.router.add_get("/health", self._health)
        app.router.add_get("/v1/models", self._list)
        for path in self.more_paths:
            app.router.add_route("*", path, self._list)
        app.router.add_post("/{path:.*}", self._answer)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1, handler_cancellation=True)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{site._server.sockets[0].getsockname()[1]}"

    async def _health(self, request: web.Request) -> web.Response:
        return web.json_response({}, status=200 if self.healthy else 503)

    async def _list(self, request: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [{"id": name} for name in self.models]})

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.seen.append(body)
        self.headers.append({name.lower(): value for name, value in request.headers.items()})
        if self.status != 200:
            return web.json_response(
                {"error": {"message": "no"}}, status=self.status, headers={"retry-after": "7"}
            )
        if not body.get("stream"):
            await self._wait()
            return web.json_response({"from": self.url, "path": request.path})
        answer = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await answer.prepare(request)
        for number, part in enumerate(self.parts):
            if number == self.breaks_after:
                request.transport.abort()
                return answer
            if number >= self.waits_before:
                await self._wait()
            await answer.write(part)
        return answer

    async def _wait(self) -> None:
        try:
            await self.waits.wait()
        except asyncio.CancelledError:
            self.left.set()
            raise

    def hold(self) -> None:
        self.loop.call_soon_threadsafe(self.waits.clear)

    def go_on(self) -> None:
        self.loop.call_soon_threadsafe(self.waits.set)

    def end(self) -> None:
        self.run(self._runner.cleanup())
        super().end()


class RunningController(Serving):
    def __init__(self, **options) -> None:
        super().__init__()
        self.controller = Controller(ControllerConfig(port=0, **options))
        self._task = asyncio.run_coroutine_threadsafe(self.controller.run(), self.loop)
        self.url = url_of(self.controller.listener)

    @property
    def registry(self) -> Registry:
        return self.controller.registry

    def wait_for(self, condition: Callable[[], object], seconds: float = 20.0) -> None:
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, [*self.registry]
            time.sleep(0.01)

    def end(self) -> None:
        self.loop.call_soon_threadsafe(self.controller.stop)
        self._task.result(10)
        super().end()


@pytest.fixture
def start() -> Iterator[Callable]:
    """start(MockWorker), start(RunningController, ...): ended with the test, the last one first."""
    with contextlib.ExitStack() as stack:

        def begin(kind, *args, **options):
            serving = kind(*args, **options)
            stack.callback(serving.end)
            return serving

        yield begin


@pytest.fixture
def cluster(start) -> Callable:
    """cluster(count, **options) -> a controller that knows so many workers, and these."""

    def begin(count: int = 2, **options) -> tuple[RunningController, list[MockWorker]]:
        workers = [start(MockWorker) for _ in range(count)]
        running = start(RunningController, workers=[worker.url for worker in workers], **options)
        running.wait_for(lambda: len(running.registry) == count)
        return running, workers

    return begin
