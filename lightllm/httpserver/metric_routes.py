"""`/metrics`, and `/metrics/history`: the last minutes, second by second. Both read shared memory and ask no process."""

from __future__ import annotations

import math
import time
from pathlib import Path

import msgspec
from fastapi import APIRouter, Request
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from lightllm.http.exposition import exposition
from lightllm.httpserver.openapi import plain
from lightllm.httpserver.state import ServerState
from lightllm.ipc.metric_history import HISTORY_SECONDS, columns, read_history
from lightllm.parameter_spec import Range


def metric_routes(state: ServerState) -> APIRouter:
    router = APIRouter(tags=["Server"])
    view, runtime = state.view, state.engine.runtime

    @router.get("/metrics", **plain("Prometheus text format.", media_type="text/plain"))
    async def metrics() -> Response:
        text = await run_in_threadpool(exposition, runtime, view.snapshot(), view.healthy(), state.model_name)
        return Response(text, media_type=CONTENT_TYPE_LATEST)

    @router.get("/metrics/history", **plain("A list of values for each field.", 400))
    async def history(request: Request) -> Response:
        """The last `seconds` (600 at most, and unless given), a sample each: throughput, load, latencies."""
        seconds = _number(request.query_params.get("seconds", str(HISTORY_SECONDS)))
        Range(1, HISTORY_SECONDS).require("seconds", seconds, "seconds")
        body = await run_in_threadpool(_history, runtime.history_file, time.time() - seconds)
        return Response(body, media_type="application/json")

    return router


def _number(text: str) -> float:
    """NaN, which is in no range, where it is none."""
    try:
        return float(text)
    except ValueError:
        return math.nan


def _history(path: Path, since: float) -> bytes:
    samples = [sample for sample in read_history(path) if sample.time > since]
    return msgspec.json.encode({"interval": 1.0, "samples": columns(samples)})
