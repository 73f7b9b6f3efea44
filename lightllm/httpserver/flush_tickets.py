"""Flushes of the prefix cache that the Router has been asked for and has not answered. Runs in the event loop."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable

from lightllm.errors import ServerOverloaded
from lightllm.protocol.messages import FlushCache, Flushed


class FlushTickets:
    """Of one Http worker."""

    def __init__(self, worker: int, send: Callable[[FlushCache], None], first: int) -> None:
        """send: to the Router; first: above every ticket of a former life of this worker."""
        self._worker = worker
        self._send = send
        self._numbers = itertools.count(first)
        self._open: dict[int, asyncio.Future[int]] = {}

    async def flush(self, seconds: float) -> int:
        """Has the Router empty the prefix cache; tokens that it lost. Raises `ServerOverloaded` if it takes longer."""
        ticket = next(self._numbers)
        done = self._open[ticket] = asyncio.get_running_loop().create_future()
        self._send(FlushCache(self._worker, ticket))
        try:
            return await asyncio.wait_for(done, seconds)
        except TimeoutError:
            raise ServerOverloaded("the prefix cache could not be flushed in time", retry_after=1) from None
        finally:
            del self._open[ticket]

    def on_flushed(self, message: Flushed) -> None:
        done = self._open.get(message.ticket)
        if done is not None and not done.done():
            done.set_result(message.tokens)

    def send_again(self) -> None:
        """To another Router, which has heard of none."""
        for ticket in self._open:
            self._send(FlushCache(self._worker, ticket))
