"""A client's request on its way to a worker.

    body ──> Ask ──> Dispatcher.send ──> worker ──> first part of the answer ──> client
                          ^                │
                          └── another one ─┘  it could not be reached, refused for load, or broke off

Nothing is sent to the client before the worker's answer has begun, so another worker can take the request.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Coroutine, Iterator
from typing import Any

import aiohttp
from starlette.requests import ClientDisconnect, Request
from starlette.types import Receive, Scope, Send

from lightllm.cluster.ask import Ask, read_ask
from lightllm.cluster.dispatcher import Dispatcher, NoWorker
from lightllm.cluster.metrics import ControllerMetrics
from lightllm.cluster.paths import FASTCHAT_PATHS
from lightllm.cluster.refusal import STATUSES, BrokenOff, Refused, Unreached, fastchat_error
from lightllm.cluster.relay import Relay
from lightllm.cluster.upstream import FAILURES, Upstream, url_of
from lightllm.cluster.worker import Ticket, Worker
from lightllm.errors import RequestError
from lightllm.http.body import BodyBudget, BodyLease, read_body
from lightllm.http.error_middleware import REQUEST_ID

_log = logging.getLogger(__name__)


class Proxy:
    def __init__(
        self,
        dispatcher: Dispatcher,
        upstream: Upstream,
        metrics: ControllerMetrics,
        retries: int,
        max_body: int,
    ) -> None:
        """retries: further workers that a request may be sent to; max_body: bytes."""
        self._dispatcher = dispatcher
        self._registry = dispatcher.registry
        self._upstream = upstream
        self._metrics = metrics
        self._retries = retries
        self._budget = BodyBudget(max_body)
        self._running: dict[Worker, set[aiohttp.ClientResponse]] = {}
        self._registry.on_dead.append(self._cut_off)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI: one request that a model answers. Raises `RequestError`."""
        lease = BodyLease(self._budget)
        try:
            body = bytes(await read_body(Request(scope, receive), self._budget.largest, lease))
            ask = read_ask(body, scope["headers"], self._registry.default_model())
            await _while_connected(self._answer(scope, body, ask, send), receive)
        except RequestError as error:
            self._metrics.rejected.labels(error.code or "").inc()
            if scope["path"] not in FASTCHAT_PATHS:
                raise
            await fastchat_error(error, scope["path"] == "/worker_generate_stream")(scope, receive, send)
        finally:
            lease.end()

    def end_all(self) -> None:
        """The controller stops: open answers end."""
        for worker in list(self._running):
            self._cut_off(worker)

    async def _answer(self, scope: Scope, body: bytes, ask: Ask, send: Send) -> None:
        begun = self._dispatcher.now()
        tried: list[Worker] = []
        refusal: Refused | Unreached | None = None
        for _ in range(self._retries + 1):
            try:
                ticket = self._dispatcher.send(ask, tried)
            except NoWorker:
                if refusal is None:
                    raise
                break
            with ticket:
                refusal = await self._try(ticket, scope, body, send, begun)
            if refusal is None:
                return
            tried.append(ticket.worker)
            self._metrics.retries.labels(ticket.worker.url).inc()
        assert refusal is not None
        await refusal.tell(send)

    async def _try(
        self, ticket: Ticket, scope: Scope, body: bytes, send: Send, begun: float
    ) -> Refused | Unreached | None:
        """None: the answer was passed on, whatever it was."""
        worker, now = ticket.worker, self._dispatcher.now
        headers = self._upstream.headers(scope["headers"], scope.get(REQUEST_ID, ""))
        url = url_of(worker, scope["path"], scope.get("query_string", b""))
        try:
            response = await self._upstream.session.request(scope["method"], url, headers=headers, data=body)
        except FAILURES as error:
            return self._lost(worker, error)
        try:
            with self._listed(worker, response):
                self._metrics.requests.labels(worker.url, str(response.status)).inc()
                if response.status in STATUSES:
                    return await Refused.read(response)
                relay = Relay(response, scope["path"])
                await relay.begin()
                ticket.answered()
                self._metrics.first_byte.observe(now() - begun)
                if response.status >= 500:
                    worker.breaker.failed(now())
                if not await relay.pass_on(send):
                    self._metrics.broken.labels(worker.url).inc()
                    self._lost(worker, None)
                elif response.status < 500:
                    worker.breaker.succeeded()
                return None
        except BrokenOff as error:
            return self._lost(worker, error.__cause__)
        finally:
            response.close()

    def _lost(self, worker: Worker, error: BaseException | None) -> Unreached:
        reason = str(error) or type(error).__name__ if error else "it broke off an answer"
        _log.warning("worker %s could not be reached: %s", worker.url, reason)
        self._registry.unreachable(worker, self._dispatcher.now())
        return Unreached()

    @contextlib.contextmanager
    def _listed(self, worker: Worker, response: aiohttp.ClientResponse) -> Iterator[None]:
        running = self._running.setdefault(worker, set())
        running.add(response)
        try:
            yield
        finally:
            running.discard(response)
            if not running:
                self._running.pop(worker, None)

    def _cut_off(self, worker: Worker) -> None:
        """It ends nothing any more: a connection that was not reset would wait for ever."""
        for response in list(self._running.get(worker, ())):
            response.close()


async def _while_connected(answer: Coroutine[Any, Any, None], receive: Receive) -> None:
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
