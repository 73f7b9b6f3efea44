"""What the Visual Servers have been asked for and have not answered. Runs in the event loop.

asked --Encoded--> done                                            embeddings are there, or errors
  |----EncoderReady (a Visual Server has started)--> asked again
  |----the request ends (its client left)---------> withdrawn      `Withdraw`: what nothing else waits for is not encoded
  '----its Visual Server is silent too long-------> 503
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import time
import zlib
from collections import defaultdict
from collections.abc import Callable, Sequence

from lightllm.errors import ServerOverloaded
from lightllm.protocol.images import (
    Encode,
    Encoded,
    EncodeItem,
    EncoderProgress,
    EncoderReady,
    ToVisual,
    Withdraw,
)

_log = logging.getLogger(__name__)

SILENCE_SECONDS = 120.0
"""Seconds without any sign of a Visual Server after which a request that waits for it gets 503. Every batch that it has encoded is
a sign, for whatever request it was, and so is its start: a long queue ends no request, nor does an encoder that is loaded anew within
this time. A Visual Server that cannot be started again ends the server, and with it all that wait."""


@dataclasses.dataclass(eq=False)
class _Ticket:
    server: int
    message: Encode
    done: asyncio.Future[Encoded]


class EncodeTickets:
    """Of one Http worker."""

    def __init__(
        self, worker: int, send: Sequence[Callable[[ToVisual], None]], seconds: float = SILENCE_SECONDS
    ) -> None:
        """send: to each Visual Server, by rank; seconds: patience with a silent one."""
        self._worker = worker
        self._send = send
        self._seconds = seconds
        self._serial = time.time_ns() // 10_000  # above every ticket of a former life of this worker
        self._open: dict[int, _Ticket] = {}
        self._heard = [-float("inf")] * len(send)
        """When each Visual Server gave the last sign; the loop's time."""

    async def encode(self, items: Sequence[EncodeItem]) -> dict[int, str]:
        """Returns when all have embeddings, but for those that are returned, each with what went wrong. Raises
        `ServerOverloaded` when a Visual Server is silent for too long."""
        parts: dict[int, list[EncodeItem]] = defaultdict(list)
        for item in items:
            parts[server_of(item.key, len(self._send))].append(item)
        tickets = [self._ask(server, part) for server, part in parts.items()]
        try:
            answers = [await self._answer(ticket) for ticket in tickets]
        finally:
            for ticket in tickets:
                del self._open[ticket.message.ticket]
                if not ticket.done.done():
                    self._send[ticket.server](Withdraw(self._worker, ticket.message.ticket))
        return {item_id: error for answer in answers for item_id, error in answer.errors.items()}

    def on_encoded(self, message: Encoded) -> None:
        ticket = self._open.get(message.ticket)
        if ticket is not None and not ticket.done.done():
            self._hear(ticket.server)
            ticket.done.set_result(message)

    def on_progress(self, message: EncoderProgress) -> None:
        self._hear(message.rank)

    def on_ready(self, message: EncoderReady) -> None:
        """A Visual Server has started: what the one before it has not answered is sent again."""
        self._hear(message.rank)
        again = [ticket for ticket in self._open.values() if ticket.server == message.rank]
        for ticket in again:
            self._send[message.rank](ticket.message)
        if again:
            _log.warning("visual server %d was restarted: %d requests wait for it", message.rank, len(again))

    def _ask(self, server: int, items: list[EncodeItem]) -> _Ticket:
        self._serial += 1
        message = Encode(self._worker, self._serial, items)
        ticket = self._open[self._serial] = _Ticket(
            server, message, asyncio.get_running_loop().create_future()
        )
        self._send[server](message)
        return ticket

    async def _answer(self, ticket: _Ticket) -> Encoded:
        loop = asyncio.get_running_loop()
        asked = loop.time()
        while not ticket.done.done():
            left = max(asked, self._heard[ticket.server]) + self._seconds - loop.time()
            if left <= 0:
                raise ServerOverloaded("the images could not be encoded in time", retry_after=1)
            await asyncio.wait([ticket.done], timeout=left)
        return ticket.done.result()

    def _hear(self, server: int) -> None:
        self._heard[server] = asyncio.get_running_loop().time()


def server_of(key: str, servers: int) -> int:
    """The one of `servers` Visual Servers that encodes the content `key`: the same for every Http worker, so that an image
    that many ask for at once is encoded once."""
    return zlib.crc32(key.encode()) % servers
