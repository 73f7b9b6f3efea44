"""What the Visual Server has been asked for and has not answered. Runs in the event loop."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence

from lightllm.errors import ServerOverloaded
from lightllm.protocol.images import Encode, Encoded, EncodeItem, EncoderReady

_log = logging.getLogger(__name__)

ENCODE_SECONDS = 120.0
"""Seconds that a request waits for its images to be encoded, behind those of all others and over a restart of the Visual
Server; then 503."""


class EncodeTickets:
    """Of one Http worker."""

    def __init__(self, worker: int, send: Callable[[Encode], None], seconds: float = ENCODE_SECONDS) -> None:
        """send: to the Visual Server; seconds: patience with it."""
        self._worker = worker
        self._send = send
        self._seconds = seconds
        self._serial = time.time_ns() // 10_000  # above every ticket of a former life of this worker
        self._open: dict[int, tuple[Encode, asyncio.Future[dict[int, str]]]] = {}

    async def encode(self, items: Sequence[EncodeItem]) -> dict[int, str]:
        """Returns when all have embeddings, but for those that are returned, each with what went wrong. Raises
        `ServerOverloaded` when that takes too long."""
        self._serial += 1
        message = Encode(self._worker, self._serial, list(items))
        done = asyncio.get_running_loop().create_future()
        self._open[message.ticket] = (message, done)
        try:
            self._send(message)
            async with asyncio.timeout(self._seconds):
                return await done
        except TimeoutError:
            raise ServerOverloaded("the images could not be encoded in time", retry_after=1) from None
        finally:
            del self._open[message.ticket]

    def on_encoded(self, message: Encoded) -> None:
        _, done = self._open.get(message.ticket, (None, None))
        if done is not None and not done.done():
            done.set_result(message.errors)

    def on_ready(self, message: EncoderReady) -> None:
        """A Visual Server has started: what the one before it has not answered is sent again."""
        for encode, _ in self._open.values():
            self._send(encode)
        if self._open:
            _log.warning("the visual server was restarted: %d requests wait for it", len(self._open))
