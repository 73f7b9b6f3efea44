"""How the server is: health, readiness, load, metrics, version, model name."""

from __future__ import annotations

from pathlib import Path

import msgspec
from fastapi import APIRouter
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.concurrency import run_in_threadpool
from starlette.responses import JSONResponse, Response

from lightllm import __version__
from lightllm.http.metric_store import read_all, render
from lightllm.httpserver.openapi import plain
from lightllm.httpserver.state import ServerState, ServerView
from lightllm.ipc.snapshot import Snapshot
from lightllm.protocol.metrics import HTTP_METRICS, SNAPSHOT_METRICS

_LATER = {"retry-after": "1"}


def health_routes(state: ServerState) -> APIRouter:
    """The routes; health and readiness answer 503 until the model serves, and while the server drains."""
    router = APIRouter(tags=["Server"])
    view = state.view

    @router.post("/ping", **plain("Healthy.", 503))
    @router.get("/ping", **plain("Healthy.", 503))
    @router.get("/healthz", **plain("Healthy.", 503))
    @router.get("/health", **plain("Healthy.", 503))
    async def health() -> Response:
        """200 while requests can be served, 503 otherwise, also while a process of the server hangs."""
        if view.healthy():
            return JSONResponse({"message": "Ok"})
        return JSONResponse({"message": "Error", "status": _status(view)}, 503, _LATER)

    @router.post("/readiness", **plain("Ready.", 503))
    @router.get("/readiness", **plain("Ready.", 503))
    async def readiness() -> Response:
        """200 when the model is loaded and the server takes requests and serves them."""
        if view.healthy():
            return JSONResponse({"status": "ok"})
        return JSONResponse({"status": _status(view)}, 503, _LATER)

    @router.post("/liveness", **plain("Alive."))
    @router.get("/liveness", **plain("Alive."))
    async def liveness() -> Response:
        """200 as soon as this process answers."""
        return JSONResponse({"status": "ok"})

    @router.post("/get_model_name", **plain("The model's name."))
    @router.get("/get_model_name", **plain("The model's name."))
    async def get_model_name() -> Response:
        return JSONResponse({"model_name": state.model_name})

    @router.get("/token_load", **plain("Shares of the KV memory, 0 to 1."))
    async def token_load() -> Response:
        """current_load: slots that requests own; logical_max_load: slots still to be written by what runs, included;
        dynamic_max_load: the predicted peak. All are zero on an idle server."""
        snapshot = view.snapshot()
        total = snapshot.slots_total or 1
        current = snapshot.slots_used / total
        peak = max(current, snapshot.estimated_peak / total) if snapshot.running else current
        return JSONResponse({"current_load": current, "logical_max_load": peak, "dynamic_max_load": peak})

    @router.get("/metrics", **plain("Prometheus text format.", media_type="text/plain"))
    async def metrics() -> Response:
        snapshot = msgspec.structs.replace(view.snapshot(), ready=int(view.healthy()))
        body = await run_in_threadpool(_exposition, state.engine.runtime.metrics_dir, snapshot)
        return Response(body, media_type=CONTENT_TYPE_LATEST)

    @router.get("/version", **plain("The server's version."))
    async def version() -> Response:
        return JSONResponse({"version": __version__})

    return router


def _exposition(folder: Path, snapshot: Snapshot) -> bytes:
    """The workers' sums and the Router's snapshot."""
    sums = read_all(folder, HTTP_METRICS)
    return render(
        [
            *((metric, sums[metric.name]) for metric in HTTP_METRICS),
            *((metric, [float(getattr(snapshot, field))]) for metric, field in SNAPSHOT_METRICS),
        ]
    )


def _status(view: ServerView) -> str:
    """Why the server is not healthy, in a word or with the process that hangs."""
    if view.draining:
        return "stopping"
    stall = view.stall()
    return "starting" if stall is None else f"{stall.process} has made no progress for {stall.seconds:.0f} s"
