"""FastChat's worker routes: chunks are JSON objects, each with a NUL byte behind it. Whatever fails is a chunk as well: a connection
that is broken off would say that the worker is not there."""

from __future__ import annotations

import logging
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import msgspec
from fastapi import APIRouter
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from lightllm.cluster.ask import read_body as read_object
from lightllm.cluster.fastchat_protocol import Code, checked, error_chunk
from lightllm.cluster.workers.base import BaseModelWorker
from lightllm.errors import RequestError
from lightllm.http.body import BodyBudget, BodyLease, read_body

_MAX_BODY = 64 << 20
_STREAM = "application/octet-stream"
_log = logging.getLogger(__name__)
Gate = Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]


def worker_routes(worker: BaseModelWorker) -> APIRouter:
    router = APIRouter()
    budget = BodyBudget(_MAX_BODY)

    async def read(request: Request) -> dict[str, Any]:
        lease = BodyLease(budget)
        try:
            values = read_object(bytes(await read_body(request, _MAX_BODY, lease)) or b"{}")
        finally:
            lease.end()
        return checked(request.scope["path"], values)

    async def answer(request: Request, gate: Gate, **failed: Any) -> Response:
        """failed: what an error says beside itself."""
        try:
            return JSONResponse(await gate(await read(request)))
        except Exception as error:
            return JSONResponse(_failure(error) | failed)

    async def conversation(params: dict[str, Any]) -> dict[str, Any]:
        return {"conv": worker.get_conv_template(params)}

    @router.post("/worker_generate_stream")
    async def worker_generate_stream(request: Request) -> Response:
        try:
            chunks = _chunks(worker, await read(request))
        except Exception as error:
            return Response(_written(_failure(error)), media_type=_STREAM)
        return StreamingResponse(chunks, media_type=_STREAM)

    @router.post("/worker_generate")
    async def worker_generate(request: Request) -> Response:
        return await answer(request, _with_room(worker, worker.generate_gate))

    @router.post("/worker_get_embeddings")
    async def worker_get_embeddings(request: Request) -> Response:
        return await answer(request, _with_room(worker, worker.get_embeddings))

    @router.post("/count_token")
    async def count_token(request: Request) -> Response:
        return await answer(request, worker.count_token, count=0)

    @router.post("/worker_get_status")
    async def worker_get_status() -> Response:
        return JSONResponse(worker.status())

    @router.post("/worker_get_conv_template")
    async def worker_get_conv_template(request: Request) -> Response:
        return await answer(request, conversation)

    @router.post("/model_details")
    async def model_details(request: Request) -> Response:
        return await answer(request, worker.model_details)

    @router.get("/health")
    async def health() -> Response:
        return JSONResponse({"status": "ok"})

    return router


def _with_room(worker: BaseModelWorker, gate: Gate) -> Gate:
    async def waiting(params: dict[str, Any]) -> dict[str, Any]:
        async with worker.room():
            return await gate(params)

    return waiting


async def _chunks(worker: BaseModelWorker, params: dict[str, Any]) -> AsyncIterator[bytes]:
    try:
        async with worker.room():
            async for chunk in worker.generate_stream_gate(params):
                yield _written(chunk)
    except Exception as error:
        yield _written(_failure(error))


def _written(chunk: dict[str, Any]) -> bytes:
    return msgspec.json.encode(chunk) + b"\0"


def _failure(error: Exception) -> dict[str, Any]:
    """The chunk of what was refused, or of a defect, which the log tells more of."""
    if isinstance(error, ClientDisconnect):
        raise error
    if isinstance(error, RequestError):
        return error_chunk(error)
    error_id = secrets.token_hex(6)
    _log.error("a request failed, error id %s", error_id, exc_info=error)
    return {"text": f"an internal error occurred (error id {error_id})", "error_code": int(Code.INTERNAL)}
