"""How the server is: health, readiness, load, version, model name."""

from __future__ import annotations

import dataclasses

import msgspec
from fastapi import APIRouter
from starlette.responses import JSONResponse, Response

from lightllm import __version__
from lightllm.config import SECRET_OPTIONS
from lightllm.httpserver.openapi import plain
from lightllm.httpserver.state import ServerState
from lightllm.protocol.health import Health
from lightllm.sampling_params import MAX_BEST_OF, MAX_STOP_SEQUENCES

_LATER = {"retry-after": "1"}


def health_routes(state: ServerState) -> APIRouter:
    """The routes; health and readiness answer 503 until the model serves, while the server drains, and while it hangs. Their
    bodies say why."""
    router = APIRouter(tags=["Server"])
    view = state.view

    @router.post("/ping", **plain("Healthy.", 503))
    @router.get("/ping", **plain("Healthy.", 503))
    @router.get("/healthz", **plain("Healthy.", 503))
    @router.get("/health", **plain("Healthy.", 503))
    async def health() -> Response:
        """200 while requests can be served, 503 otherwise, also while a process of the server hangs."""
        health = view.health()
        return _answer(health, {"message": "Ok" if health.status == "ok" else "Error"})

    @router.post("/readiness", **plain("Ready.", 503))
    @router.get("/readiness", **plain("Ready.", 503))
    async def readiness() -> Response:
        """200 when the model is loaded and the server takes requests and serves them."""
        return _answer(view.health())

    @router.post("/liveness", **plain("Alive."))
    @router.get("/liveness", **plain("Alive."))
    async def liveness() -> Response:
        """200 as soon as this process answers, however the others are."""
        return _answer(msgspec.structs.replace(view.health(), status="ok"))

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

    @router.get("/load", **plain("Requests and slots."))
    async def load() -> Response:
        """Requests that run and wait, and slots of the KV memory. server_load is vLLM's name for the requests together."""
        snapshot = view.snapshot()
        names = ("running", "waiting", "paused", "slots_total", "slots_used", "slots_cached")
        requests = snapshot.running + snapshot.waiting
        return JSONResponse({"server_load": requests, **{name: getattr(snapshot, name) for name in names}})

    @router.get("/version", **plain("The server's version."))
    async def version() -> Response:
        return JSONResponse({"version": __version__})

    return router


def info_routes(state: ServerState) -> APIRouter:
    """What the server runs with, as LightLLM tells it since 1.2 and as text-generation-inference does."""
    router = APIRouter(tags=["Server"])

    @router.post("/get_server_info", **plain("The options."))
    @router.get("/get_server_info", **plain("The options."))
    async def get_server_info() -> Response:
        """The options that the server runs with, but for its keys, and its version."""
        options = dataclasses.asdict(state.config)
        shown = {name: value for name, value in options.items() if name not in SECRET_OPTIONS}
        return JSONResponse({**shown, "version": __version__})

    @router.get("/info", **plain("The model and its limits."))
    async def info() -> Response:
        """The model and its limits, by text-generation-inference's names."""
        most = state.limits.max_req_total_len
        return JSONResponse(
            {
                "model_id": state.model_name,
                "model_dtype": state.config.data_type,
                "max_input_tokens": min(most - 1, state.config.max_req_input_len or most) if most else None,
                "max_total_tokens": most or None,
                "max_concurrent_requests": state.config.running_max_req_size,
                "max_best_of": MAX_BEST_OF,
                "max_stop_sequences": MAX_STOP_SEQUENCES,
                "router": "lightllm",
                "version": __version__,
            }
        )

    @router.post("/get_weight_version", **plain("The version of the weights."))
    @router.get("/get_weight_version", **plain("The version of the weights."))
    async def get_weight_version() -> Response:
        """Always the same: weights do not change while the server runs."""
        return JSONResponse({"weight_version": "default"})

    return router


def _answer(health: Health, more: dict[str, str] | None = None) -> Response:
    body = {
        **(more or {}),
        "status": health.status,
        "reason": health.reason,
        "processes": msgspec.to_builtins(health.processes),
    }
    return JSONResponse(body) if health.status == "ok" else JSONResponse(body, 503, _LATER)
