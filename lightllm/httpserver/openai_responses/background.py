"""Answers that are made whoever waits for them: streams that go to nobody. What comes of them is in the store."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

from starlette.responses import Response
from starlette.types import Message, Scope

from lightllm.http.error_middleware import ABORT_CONNECTION, WRITE_PARTS
from lightllm.httpserver.responses import KEEP_ALIVE

_log = logging.getLogger(__name__)
_running: set[asyncio.Task[None]] = set()


async def run_apart(response: Response, scope: Scope, take: Callable[[bytes], object] | None = None) -> None:
    """Starts the answer, a stream, and returns as soon as the engine has accepted the request. Raises what it is refused with. take:
    gets each of its events."""
    accepted = asyncio.get_running_loop().create_future()
    task = asyncio.create_task(_run(response, scope, accepted, take))
    _running.add(task)
    task.add_done_callback(_running.discard)
    await asyncio.shield(accepted)


async def _run(
    response: Response, scope: Scope, accepted: asyncio.Future[None], take: Callable[[bytes], object] | None
) -> None:
    async def send(message: Message) -> None:
        if message["type"] == "http.response.start" and not accepted.done():
            accepted.set_result(None)
        if take is not None and (event := message.get("body", b"")) and event != KEEP_ALIVE:
            take(event)

    async def receive() -> Message:
        await asyncio.Event().wait()  # this client never leaves
        raise AssertionError

    ways = (ABORT_CONNECTION, WRITE_PARTS)  # to a connection that has another answer by now
    apart: dict[str, Any] = {name: value for name, value in scope.items() if name not in ways}
    try:
        await response(apart, receive, send)
    except Exception as error:
        if accepted.done():
            _log.exception("an answer in the background has failed")
        else:
            accepted.set_exception(error)
