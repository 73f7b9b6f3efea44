"""The events of a response that is made in the background, as a stream: from the file that they are kept in, in whichever worker
they are asked for. So a client may leave, and take the stream up again where it was."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from lightllm.httpserver.responses import EVENTS, KEEP_ALIVE, SILENT_SECONDS

_LOOK_SECONDS = 0.02
_READ_BYTES = 1 << 18
"""At once, unless an event is larger."""
_STILL_SECONDS = 3600.0
"""After which a response that tells nothing more is taken for one whose worker is gone."""
_LAST = (b"event: response.completed\n", b"event: response.incomplete\n", b"event: response.failed\n")


class EventStream(Response):
    def __init__(
        self, read: Callable[[int, int], bytes | None], starting_after: int, silence: float | None
    ) -> None:
        """read: so many bytes of the events from a position on, or what there is; None when they are deleted. starting_after: the number
        of the last event that the client has; silence: --sse_keep_alive."""
        self.status_code = 200
        self.background = None
        self._read = read
        self._skipped = starting_after + 1
        self._silence = SILENT_SECONDS if silence is None else silence
        self._left = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = [(b"content-type", EVENTS), (b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        watcher = asyncio.create_task(self._watch(receive))
        try:
            await self._follow(send)
        finally:
            watcher.cancel()
        if not self._left:
            await send({"type": "http.response.body", "body": b""})

    async def _watch(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self._left = True

    async def _follow(self, send: Send) -> None:
        loop = asyncio.get_running_loop()
        position, number, size = 0, 0, _READ_BYTES
        grown = told = loop.time()
        while not self._left and loop.time() < grown + _STILL_SECONDS:
            data = self._read(position, size)
            if data is None:
                return
            whole = data.rpartition(b"\n\n")[0]
            if not whole and len(data) == size:
                size *= 2
                continue
            size = _READ_BYTES
            if not whole:
                if self._silence and loop.time() >= told + self._silence:
                    await send({"type": "http.response.body", "body": KEEP_ALIVE, "more_body": True})
                    told = loop.time()
                await asyncio.sleep(_LOOK_SECONDS)
                continue
            position += len(whole) + 2
            for event in whole.split(b"\n\n"):
                number += 1
                if number > self._skipped:
                    await send({"type": "http.response.body", "body": event + b"\n\n", "more_body": True})
                if event.startswith(_LAST):
                    return
            grown = told = loop.time()
