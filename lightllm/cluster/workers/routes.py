"""FastChat's worker routes: chunks are JSON objects, each with a NUL byte behind it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import msgspec
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from lightllm.cluster.ask import read_body as read_object
from lightllm.cluster.workers.base import BaseModelWorker, WorkerError
from lightllm.errors import RequestError
from lightllm.http.body import BodyBudget, BodyLease, read_body

_MAX_BODY = 64 << 20


def worker_routes(worker: BaseModelWorker) -> APIRouter:
    router = APIRouter()
    budget = BodyBudget(_MAX_BODY)

    async def read(request: Request) -> dict[str, Any]:
        lease = BodyLease(budget)
        try:
            return read_object(bytes(await read_body(request, _MAX_BODY, lease)) or b"{}")
        finally:
            lease.end()

    async def answer(
        request: Request, gate: Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]
    ) -> Response:
        params = await read(request)
        try:
            async with worker.room():
                return JSONResponse(await gate(params))
        except WorkerError as error:
            return JSONResponse(error.chunk)

    @router.post("/worker_generate_stream")
    async def worker_generate_stream(request: Request) -> Response:
        return StreamingResponse(_chunks(worker, await read(request)), media_type="application/octet-stream")

    @router.post("/worker_generate")
    async def worker_generate(request: Request) -> Response:
        return await answer(request, worker.generate_gate)

    @router.post("/worker_get_embeddings")
    async def worker_get_embeddings(request: Request) -> Response:
        return await answer(request, worker.get_embeddings)

    @router.post("/count_token")
    async def count_token(request: Request) -> Response:
        params = await read(request)
        try:
            return JSONResponse(await worker.count_token(params))
        except WorkerError as error:
            return JSONResponse(error.chunk | {"count": 0})

    @router.post("/worker_get_status")
    async def worker_get_status() -> Response:
        return JSONResponse(worker.status())

    @router.post("/worker_get_conv_template")
    async def worker_get_conv_template(request: Request) -> Response:
        params = await read(request)
        return JSONResponse({"conv": worker.get_conv_template(params)})

    @router.post("/model_details")
    async def model_details(request: Request) -> Response:
        params = await read(request)
        return JSONResponse(await worker.model_details(params))

    @router.get("/health")
    async def health() -> Response:
        return JSONResponse({"status": "ok"})

    return router


async def _chunks(worker: BaseModelWorker, params: dict[str, Any]) -> AsyncIterator[bytes]:
    try:
        async with worker.room():
            async for chunk in worker.generate_stream_gate(params):
                yield msgspec.json.encode(chunk) + b"\0"
    except RequestError as error:
        code = error.error_code if isinstance(error, WorkerError) else 50001
        yield msgspec.json.encode({"text": error.message, "error_code": code}) + b"\0"
