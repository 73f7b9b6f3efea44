"""`/metrics`, and `/metrics/history`: the last minutes, second by second. Both read shared memory and ask no process.
`/metrics/kv_map`: who has which slots; it lets the Router know that somebody looks."""

from __future__ import annotations

import asyncio
import math
import time
from pathlib import Path

import msgspec
from fastapi import APIRouter, Request
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from lightllm.errors import ServerLoading
from lightllm.http.exposition import exposition
from lightllm.httpserver.openapi import plain
from lightllm.httpserver.state import ServerState
from lightllm.ipc.kv_map import DRAW_SECONDS, KvMap, KvMapReader
from lightllm.ipc.metric_history import HISTORY_SECONDS, columns, read_history
from lightllm.parameter_spec import Range

MAP_SECONDS = 3.0
"""So long a client waits for a map that is fresh."""
_LOOK_SECONDS = 0.02


def metric_routes(state: ServerState) -> APIRouter:
    router = APIRouter(tags=["Server"])
    view, runtime = state.view, state.engine.runtime
    maps = KvMapReader(runtime.kv_map_file)

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

    @router.get("/metrics/kv_map", **plain("Slots by owner, as a whole and piece by piece.", 503))
    async def kv_map() -> Response:
        """Who has which part of the KV memory now: running requests, the radix tree, nobody. The Router draws it while
        somebody asks, once a second."""
        view.require_ready()
        drawn = await _fresh_map(maps)
        return Response(msgspec.json.encode(drawn), media_type="application/json")

    return router


async def _fresh_map(maps: KvMapReader) -> KvMap:
    """One that is not older than two of the Router's turns; the first one of a while takes up to a second. Raises `RequestError`."""
    end = time.monotonic() + MAP_SECONDS
    while (now := time.monotonic()) < end:
        maps.watch(now)
        drawn = maps.read()
        if drawn is not None and now - drawn.drawn <= 2 * DRAW_SECONDS:
            return drawn
        await asyncio.sleep(_LOOK_SECONDS)
    raise ServerLoading(
        f"the Router has drawn no map for {MAP_SECONDS:g} s: it is busy, or starting", retry_after=1
    )


def _number(text: str) -> float:
    """NaN, which is in no range, where it is none."""
    try:
        return float(text)
    except ValueError:
        return math.nan


def _history(path: Path, since: float) -> bytes:
    samples = [sample for sample in read_history(path) if sample.time > since]
    return msgspec.json.encode({"interval": 1.0, "samples": columns(samples)})
