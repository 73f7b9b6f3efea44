"""Messages of an Http worker that wait for an answer with their number. Runs in the event loop."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from typing import Generic, TypeVar

Message = TypeVar("Message")
Answer = TypeVar("Answer")


class Tickets(Generic[Message, Answer]):
    """Of one kind, for one process."""

    def __init__(self, send: Callable[[Message], None], first: int) -> None:
        """first: above every ticket of a former life of this worker."""
        self._send = send
        self._numbers = itertools.count(first)
        self._open: dict[int, tuple[Message, asyncio.Future[Answer]]] = {}

    async def ask(self, message_of: Callable[[int], Message], again: float | None = None) -> Answer:
        """Sends what `message_of` makes of a new number, and waits for its answer; again: seconds after which it is sent once
        more."""
        ticket = next(self._numbers)
        message, done = message_of(ticket), asyncio.get_running_loop().create_future()
        self._open[ticket] = message, done
        self._send(message)
        try:
            while not (await asyncio.wait([done], timeout=again))[0]:
                self._send(message)
            return done.result()
        finally:
            del self._open[ticket]

    def answer(self, ticket: int, answer: Answer) -> None:
        """To one that may be closed already."""
        if ticket in self._open:
            done = self._open[ticket][1]
            if not done.done():
                done.set_result(answer)

    def send_again(self) -> None:
        """To a process that may be another one, which has heard of none."""
        for message, _ in self._open.values():
            self._send(message)
