"""A client's request on its way to a worker.

    body ──> Ask ──> Dispatcher.send ──> worker ──> first part of the answer ──> client
                          ^                │
                          └── another one ─┘  it could not be reached, refused for load, or broke off

Nothing is sent to the client before the worker's answer has begun, so another worker can take the request. A stream that breaks
off later goes on on another server of ours, from the token that the client has got.
"""

from __future__ import annotations

import logging
from typing import Any

import aiohttp
from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from lightllm.cluster.ask import Ask, read_ask, with_fields
from lightllm.cluster.ask import read_body as read_object
from lightllm.cluster.dispatcher import Dispatcher, NoWorker
from lightllm.cluster.entrance import Bodies, Entrance
from lightllm.cluster.fastchat_bridge import BRIDGED_PATHS, Bridge, Translated
from lightllm.cluster.fastchat_protocol import PARAMETERS, checked
from lightllm.cluster.held_responses import HeldResponses
from lightllm.cluster.metrics import ControllerMetrics
from lightllm.cluster.open_answers import OpenAnswers, while_connected
from lightllm.cluster.paths import FASTCHAT_PATHS, FOLLOWING_PATHS, RESPONSES, RESUMABLE_PATHS
from lightllm.cluster.refusal import STATUSES, BrokenOff, Refused, Unreached, fastchat_error
from lightllm.cluster.relay import Relay
from lightllm.cluster.subordinate import KIND as CONTROLLER
from lightllm.cluster.upstream import FAILURES, Upstream, url_of
from lightllm.cluster.worker import Ticket, Worker
from lightllm.errors import NotFound, PreviousResponseNotFound, RequestError, UnknownResponse
from lightllm.http.auth import caller
from lightllm.http.body import BodyBudget, BodyLease, read_body
from lightllm.http.error_middleware import REQUEST_ID
from lightllm.protocol.kv_events import PROMPT_ASKS, PROMPT_TELLS, read_prompt
from lightllm.protocol.resume import ASKS, ROUTE

Answer = aiohttp.ClientResponse | Translated
_log = logging.getLogger(__name__)
RESUMES = "lightllm"
"""The kind of workers that go on with a stream."""
_MOVES = 8
"""Workers that one stream may be made by, one after the other."""


class Proxy:
    def __init__(
        self,
        dispatcher: Dispatcher,
        upstream: Upstream,
        metrics: ControllerMetrics,
        answers: OpenAnswers,
        held: HeldResponses,
        entrance: Entrance,
        retries: int,
        max_body: int,
    ) -> None:
        """retries: further workers that a request may be sent to; max_body: bytes."""
        self._dispatcher = dispatcher
        self._registry = dispatcher.registry
        self._upstream = upstream
        self._metrics = metrics
        self._answers = answers
        self._held = held
        self._entrance = entrance
        self._bridge = Bridge(upstream.session)
        self._registry.on_gone.append(lambda worker: self._bridge.forget(worker.url))
        self._retries = retries
        self._budget = BodyBudget(max_body)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI: one request that a model answers. Raises `RequestError`."""
        lease = BodyLease(self._budget)
        try:
            body = bytes(await read_body(Request(scope, receive), self._budget.largest, lease))
            ask = read_ask(scope["path"], body, scope["headers"], self._registry.default_model())
            if scope["path"] in PARAMETERS:
                body = _checked(scope["path"], body, ask.model)
            owner = caller(Request(scope)).owner
            with (
                self._answers.named(scope.get(REQUEST_ID, ""), owner),
                self._entrance.charged(scope, ask) as charge,
            ):
                bodies = self._entrance.bodies(scope, body, ask)
                relay = Relay(scope["path"], bodies.own, send)
                if charge is not None and charge.usage is not None:
                    relay.watches["usage"] = charge.usage.look
                await while_connected(self._answer(scope, bodies, ask, owner, relay, send), receive)
        except RequestError as error:
            self._metrics.rejected.labels(error.code or "").inc()
            if scope["path"] not in FASTCHAT_PATHS:
                raise
            await fastchat_error(error, scope["path"] == "/worker_generate_stream")(scope, receive, send)
        finally:
            lease.end()

    async def _answer(
        self, scope: Scope, bodies: Bodies, ask: Ask, owner: str, relay: Relay, send: Send
    ) -> None:
        follows = ask.follows and scope["path"] in FOLLOWING_PATHS
        holder = await self._holder(ask, owner, scope["headers"]) if follows else None
        tried: list[Worker] = []
        refusal: Refused | Unreached | None = None
        for attempt in range(max(self._retries, _MOVES) + 1):
            if attempt > self._retries and not relay.started:
                break
            try:
                if attempt or holder is not None:
                    ticket = self._dispatcher.send(ask, tried, RESUMES if relay.started else "", holder)
                else:
                    ticket = await self._entrance.place(scope, ask)
            except NoWorker:
                if refusal is None:
                    raise
                break
            with ticket:
                if scope["path"] == RESPONSES and not relay.started:
                    relay.watches["response"] = self._held.watch(ticket.worker, owner)
                refusal = await self._try(ticket, scope, bodies, ask, relay)
            if refusal is None:
                return
            tried.append(ticket.worker)
            self._metrics.retries.labels(ticket.worker.url).inc()
            if relay.started and relay.resumption() is None:
                break
        assert refusal is not None
        await (relay.fail() if relay.started else refusal.tell(send))

    async def _holder(self, ask: Ask, owner: str, headers: list[tuple[bytes, bytes]]) -> Worker:
        """Raises `PreviousResponseNotFound` or `NoWorker`."""
        try:
            return await self._held.worker_of(ask.follows, owner, headers)
        except UnknownResponse as error:
            raise PreviousResponseNotFound(
                f"Previous response with id {ask.follows[:80]!r} not found: no worker keeps it, or no longer",
                param="previous_response_id",
            ) from error

    async def _try(
        self, ticket: Ticket, scope: Scope, bodies: Bodies, ask: Ask, relay: Relay
    ) -> Refused | Unreached | None:
        """None: the answer was passed on, whatever it was."""
        worker, begun = ticket.worker, self._dispatcher.now()
        try:
            response = await self._answers.begun(worker, self._ask(worker, scope, bodies, ask, relay))
        except FAILURES as error:
            return self._lost(worker, error)
        try:
            with self._answers.listed(worker, response):
                self._metrics.requests.labels(worker.url, str(response.status)).inc()
                if response.status in STATUSES or (relay.started and response.status != 200):
                    return await Refused.read(response)
                passage = await relay.begin(response)
                ticket.answered()
                self._learn(worker, ask, response)
                self._metrics.first_byte.observe(self._dispatcher.now() - begun)
                if response.status >= 500 and not isinstance(response, Translated):
                    worker.breaker.failed(self._dispatcher.now())
                await passage.pass_on()
                if response.status < 500:
                    worker.breaker.succeeded()
                return None
        except BrokenOff as error:
            if relay.started:
                self._metrics.broken.labels(worker.url).inc()
            return self._lost(worker, error.__cause__)
        finally:
            response.close()

    async def _ask(self, worker: Worker, scope: Scope, bodies: Bodies, ask: Ask, relay: Relay) -> Answer:
        """The request itself, or the rest of it. Raises one of `FAILURES`."""
        headers = self._upstream.headers(scope["headers"], scope.get(REQUEST_ID, ""))
        path = scope["path"]
        body = bodies.own if worker.description.kind in (RESUMES, CONTROLLER) else bodies.others
        if worker.description.kind == RESUMES:
            if path in RESUMABLE_PATHS:
                headers.append((ASKS.decode(), "1"))
            if self._dispatcher.policy.asks_prompts:
                headers.append((PROMPT_ASKS.decode(), "1"))
        if worker.description.kind == "fastchat" and path not in FASTCHAT_PATHS:
            if path not in BRIDGED_PATHS:
                raise NotFound(f"workers of this model have no {path}")
            return await self._bridge.ask(worker.url, path, ask.model, body, headers)
        url = url_of(worker, path, scope.get("query_string", b""))
        if relay.started:
            rest = relay.resumption()
            assert rest is not None
            url, body = url_of(worker, ROUTE), rest
        return await self._upstream.session.request("POST", url, headers=headers, data=body)

    def _learn(self, worker: Worker, ask: Ask, response: Answer) -> None:
        """Where the worker tells the blocks of the prompt."""
        told = response.headers.get(PROMPT_TELLS)
        if told is not None:
            try:
                self._dispatcher.policy.learn(worker, ask, read_prompt(told))
            except ValueError:
                _log.warning("a worker tells nonsense of a prompt: %.80s", told)

    def _lost(self, worker: Worker, error: BaseException | None) -> Unreached:
        reason = (str(error) or type(error).__name__) if error else "it broke off an answer"
        _log.warning("worker %s could not be reached: %s", worker.url, reason)
        self._registry.unreachable(worker, self._dispatcher.now())
        return Unreached()


def _checked(path: str, body: bytes, model: str) -> bytes:
    """A body for FastChat's workers: those that are not ours look at no type. Raises `InvalidParameter`."""
    fields: dict[str, Any] = dict.fromkeys(PARAMETERS[path].__struct_fields__)
    return with_fields(body, fields | checked(path, read_object(body)) | {"model": model})
