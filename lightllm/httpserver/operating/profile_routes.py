"""`/start_profile` and `/stop_profile`, which LightLLM calls `/profiler_start` and `/profiler_stop`: torch's profiler in the model backends of this machine."""

from __future__ import annotations

import asyncio
import os

import msgspec
from fastapi import APIRouter, Request
from pydantic import Field
from starlette.responses import JSONResponse, Response

from lightllm.errors import Forbidden, RequestError
from lightllm.http.auth import caller
from lightllm.http.body import parse_body
from lightllm.httpserver.openapi import documented, plain
from lightllm.httpserver.reading.field_types import Body, Int
from lightllm.httpserver.state import ServerState
from lightllm.parameter_spec import Range
from lightllm.protocol.control import ProfileAnswer, StartProfile

DEFAULT_ROUNDS = 20
MAX_ROUNDS = 200
"""Each takes about 1 KB of memory for every operation in it, and a millisecond for every thousand at the end."""


class StartProfileBody(Body):
    """Body of `/start_profile`; it may be left out."""

    num_steps: Int | None = Field(
        default=None,
        description=f"The profile ends by itself after this many rounds: 1 to {MAX_ROUNDS}, {DEFAULT_ROUNDS} by default.",
    )


def profile_routes(state: ServerState) -> APIRouter:
    router = APIRouter(tags=["Operation"])

    def check(request: Request) -> None:
        caller(request).require_operator()
        # A GET that does something: browsers send pages' GETs without an Origin, but say where they come from.
        if request.headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
            raise Forbidden("pages of other sites may not take profiles")
        if state.config.profile_dir is None:
            raise Forbidden("profiles are off: start the server with --profile_dir FOLDER")
        state.view.require_ready()

    @router.get("/profiler_start", **plain("The profile runs.", 400, 403, 503))
    @router.post("/profiler_start", **documented(StartProfileBody, "The profile runs.", required=False))
    @router.post("/start_profile", **documented(StartProfileBody, "The profile runs.", required=False))
    async def start_profile(request: Request) -> Response:
        """Records the next rounds of every model backend, a minute of them at most; that slows them down."""
        check(request)
        rounds = (await parse_body(request, StartProfileBody, state.bodies, empty=b"{}")).num_steps
        rounds = DEFAULT_ROUNDS if rounds is None else rounds
        Range(1, MAX_ROUNDS).require("num_steps", rounds, "num_steps")
        await _ask_backends(state, "start_profile", StartProfile(rounds))
        return JSONResponse({"message": "Ok"})

    @router.get("/profiler_stop", **plain("Where the traces are.", 400, 403, 503))
    @router.post("/profiler_stop", **plain("Where the traces are.", 400, 403, 503))
    @router.post("/stop_profile", **plain("Where the traces are.", 400, 403, 503))
    async def stop_profile(request: Request) -> Response:
        """Ends the profile if it still runs, waits until its traces are written, and answers with their files on the server
        (Chrome's trace format, gzip)."""
        check(request)
        return JSONResponse({"message": "Ok", "traces": await _ask_backends(state, "stop_profile", None)})

    return router


async def _ask_backends(state: ServerState, verb: str, message: StartProfile | None) -> list[str]:
    """What every rank answers, in their order. Raises `RequestError` with the reason of the first that refuses."""
    runtime = state.engine.runtime
    sockets = [runtime.backend_control(rank) for rank in range(state.config.tp)]
    local = [path for path in sockets if os.path.exists(path)]
    answers = await asyncio.gather(*(asyncio.to_thread(_ask, path, verb, message) for path in local))
    for answer in answers:
        if answer.error:
            raise RequestError(answer.error)
    return [answer.trace for answer in answers]


def _ask(path: str, verb: str, message: StartProfile | None) -> ProfileAnswer:
    """In a thread: a backend answers between two rounds."""
    from lightllm.ipc.rpc import RpcClient, RpcError  # rpyc is large, and profiles are rare

    try:
        client = RpcClient(path)
        try:
            return client.call(verb, message, ProfileAnswer)
        finally:
            client.close()
    except (RpcError, EOFError, OSError, msgspec.MsgspecError) as error:
        return ProfileAnswer(error=str(error) or type(error).__name__)
