"""What a request needs before it can be submitted, its images, is given up as soon as nothing can come of it."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from starlette.requests import ClientDisconnect, Request

from lightllm.httpserver.engine_client import EngineClient
from lightllm.httpserver.record import PromptRecord
from lightllm.images.source import ImageSource

if TYPE_CHECKING:
    from lightllm.images.counted import CountedImages

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


async def count_images(
    engine: EngineClient, request: Request, ids: Sequence[int], sources: Sequence[ImageSource], field: str
) -> CountedImages | None:
    """`Images.count`, given up like that; None also where the model takes no images."""
    if engine.images is None:
        return None
    return await prepare(engine, request, engine.images.count(ids, sources, field))


async def hold_images(
    engine: EngineClient, request: Request, prompt: PromptRecord, images: CountedImages | None
) -> None:
    """`Images.hold`, given up like that."""
    if engine.images is not None and images is not None:
        await prepare(engine, request, engine.images.hold(prompt, images))


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
