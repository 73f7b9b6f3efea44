"""What operators and clients ask the controller itself: health, models, metrics, and workers to look at, drain and remove."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from lightllm import __version__
from lightllm.cluster.metrics import ControllerMetrics
from lightllm.cluster.registry import Registry
from lightllm.cluster.worker import State, Worker
from lightllm.errors import InvalidParameter, UnknownModel
from lightllm.http.ollama import LOADED_UNTIL, version_answer


def health_routes(registry: Registry) -> APIRouter:
    router = APIRouter()

    @router.get("/health")
    @router.get("/healthz")
    @router.get("/readiness")
    @router.get("/ping")
    async def health() -> Response:
        """200 while there is a worker that takes requests."""
        ready = sum(worker.state is State.READY for worker in registry)
        status = "ok" if ready else "no worker is ready"
        return JSONResponse(
            {"status": status, "workers": len(registry), "ready": ready}, 200 if ready else 503
        )

    @router.get("/liveness")
    async def liveness() -> Response:
        return JSONResponse({"status": "ok"})

    @router.get("/version")
    async def version() -> Response:
        return JSONResponse({"version": __version__})

    return router


def model_routes(registry: Registry) -> APIRouter:
    router = APIRouter()
    started = int(time.time())

    @router.get("/v1/models")
    async def models() -> Response:
        return JSONResponse({"object": "list", "data": [_model(name) for name in registry.models()]})

    @router.get("/v1/models/{name:path}")
    async def model(name: str) -> Response:
        if name not in registry.models():
            raise UnknownModel(f"no worker serves the model {name[:100]!r}", param="model")
        return JSONResponse(_model(name))

    @router.get("/api/tags")
    async def tags() -> Response:
        """The names, for Ollama's clients; a worker tells the rest (`/api/show`)."""
        return JSONResponse({"models": [_ollama_model(name) for name in registry.models()]})

    @router.get("/api/ps")
    async def loaded() -> Response:
        until = {"expires_at": LOADED_UNTIL, "size_vram": 0}
        return JSONResponse({"models": [_ollama_model(name) | until for name in registry.models()]})

    @router.get("/api/version")
    async def ollama_version() -> Response:
        return JSONResponse(version_answer())

    def _ollama_model(name: str) -> dict[str, Any]:
        written = datetime.fromtimestamp(started, UTC).isoformat().replace("+00:00", "Z")
        digest = hashlib.sha256(name.encode()).hexdigest()
        return {
            "name": name,
            "model": name,
            "modified_at": written,
            "size": 0,
            "digest": digest,
            "details": {},
        }

    def _model(name: str) -> dict[str, Any]:
        return {"id": name, "object": "model", "created": started, "owned_by": "lightllm"}

    return router


def operator_routes(
    registry: Registry, metrics: ControllerMetrics, kv_blocks: Callable[[str], int | None]
) -> APIRouter:
    """kv_blocks: that a worker tells of; None: it tells nothing."""
    router = APIRouter()

    def listing() -> Response:
        return JSONResponse(
            {"workers": [describe(worker) | {"kv_blocks": kv_blocks(worker.url)} for worker in registry]}
        )

    @router.get("/metrics")
    async def exposition() -> Response:
        return Response(metrics.exposition(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @router.get("/workers")
    async def workers() -> Response:
        return listing()

    @router.post("/workers/drain")
    async def drain(request: Request) -> Response:
        """Nothing new is sent to the worker; what runs on it ends."""
        return _ordered(request, lambda url: registry.drain(url, True))

    @router.post("/workers/undrain")
    async def undrain(request: Request) -> Response:
        return _ordered(request, lambda url: registry.drain(url, False))

    @router.delete("/workers")
    async def remove(request: Request) -> Response:
        return _ordered(request, registry.dismiss)

    def _ordered(request: Request, change: Any) -> Response:
        url = request.query_params.get("url", "")
        if not url:
            raise InvalidParameter("the worker is named by its URL: ?url=http://...", param="url")
        change(url.rstrip("/"))
        return listing()

    return router


def describe(worker: Worker) -> dict[str, Any]:
    said, report = worker.description, worker.report
    return {
        "url": worker.url,
        "server_url": said.api_url,
        "kind": said.kind,
        "models": list(said.model_names),
        "labels": dict(said.labels),
        "state": worker.state.value,
        "breaker": "open" if worker.breaker.is_open else "closed",
        "speed": said.speed,
        "capacity": said.capacity,
        "kv_tokens": said.kv_tokens,
        "in_flight": worker.in_flight,
        "foreign": worker.foreign,
        "prefill_tokens": worker.prefill_tokens,
        "held_tokens": worker.held_tokens,
        "sent": worker.sent,
        "prompt_tokens": worker.prompt_tokens,
        "cached_tokens": worker.cached_tokens,
        "waiting_tokens": report.waiting_tokens,
        "kv_use": report.kv_use,
    }
