"""Requests that no policy places: they are about what one worker holds, about something that runs somewhere, or about all workers.

/v1/responses/ID...     to the worker that holds it
/abort_request          to all: whoever runs it ends it
/flush_cache            to all
GET_PATHS               to any worker of the model: what it says of it all say
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Sequence
from typing import Any
from urllib.parse import parse_qs

import aiohttp
import msgspec
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from lightllm.cluster.ask import read_body as read_object
from lightllm.cluster.dispatcher import Dispatcher, NoWorker
from lightllm.cluster.held_responses import PREFIX, HeldResponses
from lightllm.cluster.open_answers import OpenAnswers, while_connected
from lightllm.cluster.paths import GET_PATHS, TOLD_PATHS
from lightllm.cluster.refusal import BrokenOff, WorkerLost
from lightllm.cluster.relay import Relay
from lightllm.cluster.subordinate import KIND as SUBORDINATE
from lightllm.cluster.upstream import FAILURES, Upstream, url_of
from lightllm.cluster.worker import State, Worker
from lightllm.errors import InvalidParameter, MethodNotAllowed, NotFound, UnknownModel
from lightllm.http.auth import caller
from lightllm.http.body import BodyBudget, BodyLease, read_body
from lightllm.http.error_middleware import REQUEST_ID


async def _awaited(asked: Awaitable[aiohttp.ClientResponse]) -> aiohttp.ClientResponse:
    return await asked


_ACTIONS = {"": ("GET", "DELETE"), "input_items": ("GET",), "cancel": ("POST",)}
"""Of a response: the methods that each part of the path takes."""
_TOLD_SECONDS = 10.0
_MAX_BODY = 1 << 16


class PlacedRoutes:
    def __init__(
        self, dispatcher: Dispatcher, upstream: Upstream, held: HeldResponses, answers: OpenAnswers
    ) -> None:
        self._registry = dispatcher.registry
        self._now = dispatcher.now
        self._upstream = upstream
        self._held = held
        self._answers = answers
        self._budget = BodyBudget(_MAX_BODY)

    def takes(self, scope: Scope) -> bool:
        """Whether a request is one of these."""
        path: str = scope["path"]
        if path.startswith(PREFIX):
            return True
        if path in GET_PATHS:
            return scope["method"] in ("GET", "POST")
        return scope["method"] == "POST" and path in TOLD_PATHS

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI. Raises `RequestError`."""
        path = scope["path"]
        if path == "/abort_request":
            await (await self._abort(Request(scope, receive)))(scope, receive, send)
        elif path == "/flush_cache":
            await (await self._flush(Request(scope, receive)))(scope, receive, send)
        else:
            worker = await (self._holder(scope) if path.startswith(PREFIX) else self._any(scope))
            await while_connected(self._pass(worker, scope, send), receive)

    # -- to one

    async def _holder(self, scope: Scope) -> Worker:
        response_id, _, action = scope["path"].removeprefix(PREFIX).partition("/")
        methods = _ACTIONS.get(action)
        if methods is None:
            raise NotFound(f"there is no route {scope['path'][:200]}")
        if scope["method"] not in methods:
            raise MethodNotAllowed(f"{scope['path'][:200]} takes {' and '.join(methods)}")
        return await self._held.worker_of(response_id, caller(Request(scope)).owner, scope["headers"])

    async def _any(self, scope: Scope) -> Worker:
        named = parse_qs(scope.get("query_string", b"").decode("latin-1")).get("model", [""])[0]
        model = named or self._registry.default_model()
        found = self._registry.candidates(model, self._now())
        if not found:
            if named and named not in self._registry.models():
                raise UnknownModel(f"no worker serves the model {named[:100]!r}", param="model")
            raise NoWorker("no worker is ready", retry_after=2)
        return found[0]

    async def _pass(self, worker: Worker, scope: Scope, send: Send) -> None:
        relay = Relay(scope["path"], b"", send)
        headers = self._upstream.headers(scope["headers"], scope.get(REQUEST_ID, ""))
        url = url_of(worker, scope["path"], scope.get("query_string", b""))
        try:
            asked = self._upstream.session.request(scope["method"], url, headers=headers)
            response = await self._answers.begun(worker, _awaited(asked))
        except FAILURES as error:
            self._registry.unreachable(worker, self._now())
            raise WorkerLost(f"worker {worker.url} could not be reached", retry_after=2) from error
        try:
            with self._answers.listed(worker, response):
                await (await relay.begin(response)).pass_on()
                if scope["method"] == "DELETE" and response.status == 200:
                    self._held.forget(scope["path"].removeprefix(PREFIX))
        except BrokenOff as error:
            if not relay.started:
                raise WorkerLost(f"worker {worker.url} broke off its answer", retry_after=2) from error
            await relay.fail()
        finally:
            response.close()

    # -- to all

    async def _abort(self, request: Request) -> Response:
        """Unknown and finished names are ignored, and so are requests of other callers."""
        lease = BodyLease(self._budget)
        try:
            body = bytes(await read_body(request, _MAX_BODY, lease))
        finally:
            lease.end()
        name = read_object(body).get("request_id")
        if not isinstance(name, str) or not 0 < len(name) <= 256:
            raise InvalidParameter("request_id must be a text of 1 to 256 characters", param="request_id")
        key = caller(request).key
        if key is None or self._answers.are_of(name, key) or self._held.is_of(name, key):
            await self._tell_all(request, "/abort_request", body)
        return JSONResponse({"message": "Ok"})

    async def _flush(self, request: Request) -> Response:
        told = await self._tell_all(request, "/flush_cache", b"")
        lost = [worker.url for worker, answer in told if answer is None]
        tokens = sum(int(answer.get("flushed_tokens") or 0) for _, answer in told if answer)
        return JSONResponse(
            {"message": "Ok" if not lost else "not all", "flushed_tokens": tokens, "failed": lost},
            503 if lost else 200,
        )

    async def _tell_all(
        self, request: Request, path: str, body: bytes
    ) -> Sequence[tuple[Worker, dict[str, Any] | None]]:
        """Servers and controllers of ours; None: it did not do it."""
        workers = [
            worker for worker in self._registry
            if worker.description.kind in ("lightllm", SUBORDINATE) and worker.state is not State.OUT
        ]  # fmt: skip
        answers = await asyncio.gather(*(self._tell(worker, request, path, body) for worker in workers))
        return [*zip(workers, answers)]

    async def _tell(self, worker: Worker, request: Request, path: str, body: bytes) -> dict[str, Any] | None:
        headers = self._upstream.headers(request.scope["headers"], request.scope.get(REQUEST_ID, ""))
        timeout = aiohttp.ClientTimeout(total=_TOLD_SECONDS)
        try:
            asked = self._upstream.session.post(
                url_of(worker, path), data=body, headers=headers, timeout=timeout
            )
            async with asked as response:
                if response.status != 200:
                    return None
                answer = msgspec.json.decode(await response.read())
        except (*FAILURES, msgspec.DecodeError):
            return None
        return answer if isinstance(answer, dict) else {}
