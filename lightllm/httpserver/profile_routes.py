"""`/start_profile` and `/stop_profile`: torch's profiler in the model backends of this machine."""

from __future__ import annotations

import asyncio
import os

import msgspec
from fastapi import APIRouter
from starlette.responses import JSONResponse, Response

from lightllm.errors import RequestError
from lightllm.httpserver.openapi import plain
from lightllm.httpserver.state import ServerState
from lightllm.protocol.control import ProfileAnswer


def profile_routes(state: ServerState) -> APIRouter:
    router = APIRouter(tags=["Operation"])

    @router.post("/start_profile", **plain("The profile runs.", 400, 503))
    async def start_profile() -> Response:
        """Starts a profile of every model backend; it slows them down until it is stopped."""
        await _ask_backends(state, "start_profile")
        return JSONResponse({"message": "Ok"})

    @router.post("/stop_profile", **plain("Where the traces are.", 400, 503))
    async def stop_profile() -> Response:
        """Ends the profile; answers with the files of its traces on the server (Chrome's trace format, gzip)."""
        return JSONResponse({"message": "Ok", "traces": await _ask_backends(state, "stop_profile")})

    return router


async def _ask_backends(state: ServerState, verb: str) -> list[str]:
    """What every rank answers, in their order. Raises `RequestError` with the reason of the first that refuses."""
    state.view.require_ready()
    runtime = state.engine.runtime
    sockets = [runtime.backend_control(rank) for rank in range(state.config.tp)]
    local = [path for path in sockets if os.path.exists(path)]
    answers = await asyncio.gather(*(asyncio.to_thread(_ask, path, verb) for path in local))
    for answer in answers:
        if answer.error:
            raise RequestError(answer.error)
    return [answer.trace for answer in answers]


def _ask(path: str, verb: str) -> ProfileAnswer:
    """In a thread: a backend answers between two rounds."""
    from lightllm.ipc.rpc import RpcClient, RpcError  # rpyc is large, and profiles are rare

    try:
        client = RpcClient(path)
        try:
            return client.call(verb, None, ProfileAnswer)
        finally:
            client.close()
    except (RpcError, EOFError, OSError, msgspec.MsgspecError) as error:
        return ProfileAnswer(error=str(error) or type(error).__name__)
