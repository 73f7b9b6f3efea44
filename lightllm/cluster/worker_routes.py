"""What workers and FastChat's clients say to the controller: FastChat's protocol, with fields of our own beside its own.

Registrations and beats that do not make sense, are not signed, or name a URL that is not allowed are refused; FastChat's
own controller takes them all.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

import msgspec
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response

from lightllm.cluster.admission import AllowedWorkers
from lightllm.cluster.ask import Ask
from lightllm.cluster.dispatcher import Dispatcher, NoWorker
from lightllm.cluster.probing import Prober
from lightllm.cluster.signing import HEADER, Verifier
from lightllm.cluster.upstream import FAILURES
from lightllm.cluster.worker import Description, InvalidWorker
from lightllm.cluster.worker_messages import Beat, Registration
from lightllm.errors import MalformedBody, Unauthorized, UnknownModel
from lightllm.http.auth import known_caller
from lightllm.http.body import BodyBudget, BodyLease, read_body

_LENT_SECONDS = 5.0
"""How long a request counts whose end is never told."""
_MAX_BODY = 1 << 20
_MAX_WORKERS = 10_000


class Registrar:
    """Reads what workers say, and believes what may be believed."""

    def __init__(
        self, prober: Prober, allowed: AllowedWorkers, verifier: Verifier | None, unsigned: bool = False
    ) -> None:
        """verifier: None takes what an operator's key came with instead of a signature; unsigned: takes anybody's word."""
        self._unsigned = unsigned
        self._prober = prober
        self._allowed = allowed
        self._verifier = verifier
        self._budget = BodyBudget(_MAX_BODY)

    async def read(self, request: Request, kind: type[Any], signed: bool = True) -> Any:
        """signed: what workers alone may say. Raises `BadSignature`, `Unauthorized`, `Forbidden` or `MalformedBody`."""
        lease = BodyLease(self._budget)
        try:
            body = bytes(await read_body(request, _MAX_BODY, lease))
        finally:
            lease.end()
        if signed and self._verifier is not None:
            given = request.headers.get(HEADER, "")
            self._verifier.check(given, request.method, request.scope["path"], body, time.time())
        elif signed and not self._unsigned:
            known = known_caller(request)
            if known is None or not known.operator:
                raise Unauthorized(
                    "a controller with keys takes the word of workers that have its --cluster_secret_file, or an operator's "
                    "key (--controller_api_key)"
                )
        try:
            return msgspec.json.decode(body or b"{}", type=kind)
        except msgspec.DecodeError as error:
            raise MalformedBody(str(error)) from error

    async def description(self, given: Registration, peer: str) -> Description:
        """A worker without a status is asked for it. Raises `Forbidden` or `InvalidWorker`."""
        url = self._allowed.check(given.worker_name, peer)
        server_url = self._allowed.check(given.server_url, peer) if given.server_url else ""
        status = given.worker_status
        if status is None:
            try:
                status = await self._prober.fastchat_status(url)
            except (*FAILURES, ValueError) as error:
                reason = str(error) or type(error).__name__
                raise InvalidWorker(f"worker {url} does not say what it serves: {reason}") from error
        names, speed = status.get("model_names"), status.get("speed", 1)
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise InvalidWorker("worker_status.model_names must be a list of names", param="model_names")
        if not isinstance(speed, int | float):
            raise InvalidWorker("worker_status.speed must be a number", param="speed")
        return Description(
            url, tuple(names), server_url, given.worker_id, float(speed), given.capacity, given.kv_tokens, given.kind,
            given.labels, given.check_heart_beat, given.multimodal, given.kv_events_port,
        )  # fmt: skip


def registration_routes(dispatcher: Dispatcher, registrar: Registrar) -> APIRouter:
    router = APIRouter(include_in_schema=False)
    registry, read = dispatcher.registry, registrar.read

    @router.post("/register_worker")
    async def register_worker(request: Request) -> Response:
        given = await read(request, Registration)
        description = await registrar.description(given, request.client.host if request.client else "")
        if len(registry) >= _MAX_WORKERS:
            raise InvalidWorker(f"there are {_MAX_WORKERS} workers already")
        registry.register(description, dispatcher.now())
        return JSONResponse(None)

    @router.post("/receive_heart_beat")
    async def receive_heart_beat(request: Request) -> Response:
        beat = await read(request, Beat)
        url = beat.worker_name.rstrip("/")
        known = registry.heartbeat(url, beat.report(), dispatcher.now(), beat.worker_id)
        return JSONResponse({"exist": known})

    @router.post("/deregister_worker")
    async def deregister_worker(request: Request) -> Response:
        beat = await read(request, Beat)
        registry.remove(beat.worker_name.rstrip("/"))
        return JSONResponse(None)

    return router


def fastchat_routes(dispatcher: Dispatcher, prober: Prober, registrar: Registrar) -> APIRouter:
    """What FastChat's clients ask a controller, and a controller above this one."""
    router = APIRouter(include_in_schema=False)
    registry = dispatcher.registry

    def named(multimodal: bool) -> list[str]:
        sets = [set(worker.description.model_names) for worker in registry
                if worker.description.multimodal is multimodal]  # fmt: skip
        return sorted(set().union(*sets) & set(registry.models()))

    @router.post("/refresh_all_workers")
    async def refresh_all_workers() -> Response:
        await prober.refresh()
        return JSONResponse(None)

    @router.post("/list_models")
    async def list_models() -> Response:
        return JSONResponse({"models": registry.models()})

    @router.post("/list_multimodal_models")
    async def list_multimodal_models() -> Response:
        return JSONResponse({"models": named(True)})

    @router.post("/list_language_models")
    async def list_language_models() -> Response:
        return JSONResponse({"models": named(False)})

    @router.post("/get_worker_address")
    async def get_worker_address(request: Request) -> Response:
        asked = await registrar.read(request, dict[str, Any], signed=False)
        try:
            ticket = dispatcher.send(Ask(str(asked.get("model", ""))))
        except (NoWorker, UnknownModel):
            return JSONResponse({"address": ""})
        # the client talks to the worker itself, and nobody tells when it has ended
        asyncio.get_running_loop().call_later(_LENT_SECONDS, ticket.close)
        return JSONResponse({"address": ticket.worker.url})

    @router.post("/worker_get_status")
    async def worker_get_status() -> Response:
        status = {
            "model_names": registry.models(),
            "speed": sum(worker.description.speed for worker in registry),
            "queue_length": sum(worker.requests for worker in registry),
        }
        return JSONResponse(status)

    @router.get("/test_connection")
    async def test_connection() -> Response:
        return PlainTextResponse("success")

    return router
