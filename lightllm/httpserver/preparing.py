"""What a request needs before it can be submitted, its images, is given up as soon as nothing can come of it."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request

from lightllm.httpserver.engine_client import EngineClient

_Result = TypeVar("_Result")


async def prepare(engine: EngineClient, request: Request, work: Coroutine[Any, Any, _Result]) -> _Result:
    """The result of `work`, which is cancelled when the client leaves (raises `ClientDisconnect`) or the server ends (raises
    what `fail_all` was called with). request: its body has been read."""
    task, left = asyncio.ensure_future(work), asyncio.ensure_future(_left(request))
    waiting: list[asyncio.Future[Any]] = [task, left, engine.ended]
    try:
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        if engine.ended.done():
            raise engine.ended.result()
        raise ClientDisconnect
    finally:
        task.cancel()
        left.cancel()
        await asyncio.wait(waiting[:2])


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
