"""Flushes of the prefix cache that the Router has been asked for and has not answered. Runs in the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from lightllm.errors import ServerOverloaded
from lightllm.httpserver.tickets import Tickets
from lightllm.protocol.messages import FlushCache, Flushed


class FlushTickets:
    """Of one Http worker."""

    def __init__(self, worker: int, send: Callable[[FlushCache], None], first: int) -> None:
        """send: to the Router; first: above every ticket of a former life of this worker."""
        self._worker = worker
        self._tickets: Tickets[FlushCache, int] = Tickets(send, first)

    async def flush(self, seconds: float) -> int:
        """Has the Router empty the prefix cache; tokens that it lost. Raises `ServerOverloaded` if it takes longer."""
        asked = self._tickets.ask(lambda ticket: FlushCache(self._worker, ticket))
        try:
            return await asyncio.wait_for(asked, seconds)
        except TimeoutError:
            raise ServerOverloaded("the prefix cache could not be flushed in time", retry_after=1) from None

    def on_flushed(self, message: Flushed) -> None:
        self._tickets.answer(message.ticket, message.tokens)

    def send_again(self) -> None:
        """To another Router, which has heard of none."""
        self._tickets.send_again()
