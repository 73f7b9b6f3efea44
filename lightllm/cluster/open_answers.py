"""What is under way: connections to workers whose answers have not ended, and whose requests they are."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine, Iterator
from typing import Any, Generic, Protocol, TypeVar

import aiohttp
from starlette.requests import ClientDisconnect
from starlette.types import Receive

from lightllm.cluster.registry import Registry
from lightllm.cluster.worker import Worker

Answer = TypeVar("Answer")


class Closable(Protocol):
    def close(self) -> object: ...


class WorkerDead(aiohttp.ClientConnectionError):
    """It is out, or was started anew, before it answered."""


class _Asking(Generic[Answer]):
    """A request whose answer has not begun."""

    def __init__(self, task: asyncio.Future[Answer]) -> None:
        self.task = task
        self.closed = False

    def close(self) -> None:
        self.closed = True
        self.task.cancel()


class OpenAnswers:
    def __init__(self, registry: Registry) -> None:
        self._running: dict[Worker, set[Closable]] = {}
        self._owners: dict[str, list[str]] = {}
        """By the name of a request: the callers that have one of that name under way."""
        registry.on_dead.append(self._cut_off)

    def end_all(self) -> None:
        """The controller stops."""
        for worker in list(self._running):
            self._cut_off(worker)

    def are_of(self, name: str, owner: str) -> bool:
        """Whether there are requests of this name, all of this caller."""
        return set(self._owners.get(name, ())) == {owner}

    @contextlib.contextmanager
    def listed(self, worker: Worker, response: Closable) -> Iterator[None]:
        running = self._running.setdefault(worker, set())
        running.add(response)
        try:
            yield
        finally:
            running.discard(response)
            if not running:
                self._running.pop(worker, None)

    async def begun(self, worker: Worker, asked: Coroutine[Any, Any, Answer]) -> Answer:
        """What a worker answers, as soon as it begins to. Raises `WorkerDead` if it is dead before that: nobody tells a
        connection on which nothing has come yet."""
        asking = _Asking(asyncio.ensure_future(asked))
        with self.listed(worker, asking):
            try:
                return await asking.task
            except asyncio.CancelledError:
                if asking.closed:
                    raise WorkerDead("it does not answer any more") from None
                asking.task.cancel()
                raise

    @contextlib.contextmanager
    def named(self, name: str, owner: str) -> Iterator[None]:
        self._owners.setdefault(name, []).append(owner)
        try:
            yield
        finally:
            self._owners[name].remove(owner)
            if not self._owners[name]:
                del self._owners[name]

    def _cut_off(self, worker: Worker) -> None:
        """It ends nothing any more: a connection that was not reset would wait for ever."""
        for response in list(self._running.get(worker, ())):
            response.close()


async def while_connected(answer: Coroutine[Any, Any, None], receive: Receive) -> None:
    """A client that leaves ends its answer, and with it the worker's connection: the worker stops generating."""
    task = asyncio.ensure_future(answer)

    async def watch() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        task.cancel()

    watcher = asyncio.ensure_future(watch())
    try:
        await task
    except asyncio.CancelledError:
        if watcher.done():
            raise ClientDisconnect() from None
        task.cancel()
        raise
    finally:
        watcher.cancel()
