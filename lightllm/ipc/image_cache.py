"""Client of the Cache Manager, for Http Servers and Visual Servers. (What only reads embeddings needs `image_files` alone.)

All calls are made by one thread of its own, in order, so that an event loop never waits for a socket. When the Cache Manager
was restarted the thread connects again, takes up what is held, and goes on with the calls that are waiting.
"""

from __future__ import annotations

import asyncio
import collections
import dataclasses
import logging
import os
import select
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

import msgspec

from lightllm.errors import InvalidParameter, ServerOverloaded
from lightllm.ipc.image_files import Buffer, ImageFiles
from lightllm.ipc.rpc import RpcClient, RpcError
from lightllm.ipc.runtime_dir import RuntimeDir
from lightllm.protocol.images import (
    CacheStats,
    Full,
    HeldItems,
    Hold,
    HoldAnswer,
    Holding,
    Introduce,
    ItemIds,
    Want,
    Welcome,
)

log = logging.getLogger("image-cache")

NO_WORKER = -1
"""The client is no Http Server."""
_RETRY_SECONDS = 0.02
"""Seconds between two attempts to connect, or to hold in a full cache."""
_RETRY_AFTER = 1
"""Seconds that a client is told to wait when the cache stays full."""


@dataclasses.dataclass
class _Job:
    run: Callable[[RpcClient], Any]
    done: Future[Any]


class ImageCache:
    """References belong to this object; they end with `close`, or with the process."""

    def __init__(self, runtime: RuntimeDir, worker: int = NO_WORKER) -> None:
        """worker: number of the Http Server."""
        self.files = ImageFiles(runtime.images_dir)
        self._path = runtime.cache_control
        self._worker = worker
        self._held: dict[int, Holding] = {}
        """By item; used in the thread only."""
        self._jobs: collections.deque[_Job] = collections.deque()
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="image-cache", daemon=True)
        self._thread.start()

    async def hold(self, wants: Sequence[Want], seconds: float) -> HeldItems:
        """A reference to each, or to none. Waits while the cache is full, at most `seconds` (--image_wait).

        Raises `ServerOverloaded` when that was too long, `InvalidParameter` for more than ever fits. Release each item once
        for each want. A caller that is cancelled holds nothing.
        """
        deadline = time.monotonic() + seconds
        reason = "the image cache does not answer"
        while True:
            try:
                answer = await self._ask(list(wants), deadline - time.monotonic())
            except TimeoutError:
                raise ServerOverloaded(reason, retry_after=_RETRY_AFTER) from None
            if isinstance(answer, HeldItems):
                return answer
            if answer.never:
                raise InvalidParameter(answer.reason)
            reason = answer.reason
            if time.monotonic() + _RETRY_SECONDS > deadline:
                raise ServerOverloaded(reason, retry_after=_RETRY_AFTER)
            await asyncio.sleep(_RETRY_SECONDS)

    def release(self, item_ids: Sequence[int]) -> Future[None]:
        """One reference each."""
        return self._submit(lambda client: self._do_release(client, item_ids))

    def store(self, item_id: int, data: Buffer) -> Future[None]:
        """Writes the image's data; done when the Cache Manager knows of it. Raises `OSError` if there is no room."""

        def run(client: RpcClient) -> None:
            self.files.write_data(item_id, data)
            client.call("stored", ItemIds([item_id]), None)

        return self._submit(run)

    def encoded(self, item_ids: Sequence[int]) -> Future[None]:
        """Their embeddings are written."""
        return self._submit(lambda client: client.call("encoded", ItemIds(list(item_ids)), None))

    def failed(self, item_ids: Sequence[int]) -> Future[None]:
        """They cannot be encoded."""
        return self._submit(lambda client: client.call("failed", ItemIds(list(item_ids)), None))

    def stats(self) -> Future[CacheStats]:
        return self._submit(lambda client: client.call("stats", None, CacheStats))

    def close(self, seconds: float = 1.0) -> None:
        """Gives all references back; calls that are waiting end as cancelled. seconds: patience with the Cache Manager."""
        self._closing.set()
        os.eventfd_write(self._wake, 1)
        self._thread.join(seconds)

    # -- the callers' side

    def _submit(self, run: Callable[[RpcClient], Any]) -> Future[Any]:
        job = _Job(run, Future())
        self._jobs.append(job)
        os.eventfd_write(self._wake, 1)
        return job.done

    async def _ask(self, wants: list[Want], seconds: float) -> HoldAnswer:
        future = self._submit(lambda client: self._do_hold(client, wants))
        try:
            async with asyncio.timeout(seconds):
                return await asyncio.wrap_future(future)
        except (TimeoutError, asyncio.CancelledError):
            if not future.cancel():  # it is under way, or done just now
                future.add_done_callback(self._give_back)
            raise

    def _give_back(self, future: Future[HoldAnswer]) -> None:
        if not future.cancelled() and future.exception() is None:
            answer = future.result()
            if isinstance(answer, HeldItems):
                self.release([item.item_id for item in answer.items])

    # -- the thread's side

    def _run(self) -> None:
        connected = True
        while not self._closing.is_set():
            try:
                client = RpcClient(self._path)
            except (OSError, EOFError):
                if connected:
                    log.warning("there is no Cache Manager; it is waited for")
                connected = False
                self._closing.wait(_RETRY_SECONDS)
                continue
            connected = True
            try:
                self._introduce(client)
                self._serve(client)
            except (EOFError, OSError):
                log.warning("the connection to the Cache Manager was lost")
            client.close()
        while self._jobs:
            self._jobs.popleft().done.cancel()

    def _serve(self, client: RpcClient) -> None:
        """Makes the calls; raises `EOFError` when the Cache Manager is gone."""
        poller = select.poll()
        poller.register(self._wake, select.POLLIN)
        poller.register(client.fileno(), select.POLLIN)
        while not self._closing.is_set():
            while self._jobs:
                self._do(client, self._jobs[0])
                self._jobs.popleft()
            for descriptor, _ in poller.poll():
                if descriptor == self._wake:
                    os.eventfd_read(self._wake)
                else:
                    client.check()

    def _do(self, client: RpcClient, job: _Job) -> None:
        """`EOFError`: it is to be done again."""
        if not job.done.running() and not job.done.set_running_or_notify_cancel():
            return
        try:
            job.done.set_result(job.run(client))
        except EOFError:
            raise
        except (RpcError, OSError, ValueError) as error:
            log.warning("a call of the image cache failed: %s", error)
            job.done.set_exception(error)

    def _introduce(self, client: RpcClient) -> None:
        holding = list(self._held.values())
        welcome: Welcome = client.call("introduce", Introduce(self._worker, holding), Welcome)
        for item_id in welcome.lost:
            del self._held[item_id]
        if welcome.lost:
            log.error("%d images that requests hold are no longer in the cache", len(welcome.lost))

    def _do_hold(self, client: RpcClient, wants: list[Want]) -> HoldAnswer:
        answer: HoldAnswer = client.call("hold", Hold(wants), HoldAnswer)  # type: ignore[arg-type]
        if not isinstance(answer, Full):
            for item, want in zip(answer.items, wants, strict=True):
                held = self._held.get(item.item_id)
                references = 1 + (held.references if held else 0)
                self._held[item.item_id] = Holding(item.item_id, want.key, want.tokens, want.size, references)
        return answer

    def _do_release(self, client: RpcClient, item_ids: Sequence[int]) -> None:
        client.call("release", ItemIds(list(item_ids)), None)
        for item_id in item_ids:
            held = self._held.pop(item_id, None)
            if held is not None and held.references > 1:
                self._held[item_id] = msgspec.structs.replace(held, references=held.references - 1)
