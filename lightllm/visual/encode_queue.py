"""Images that are to be encoded, once each, however many requests wait for it. Pure: messages in, messages out."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from lightllm.protocol.images import Encode, Encoded, EncodeItem, Withdraw
from lightllm.visual.encoder import BatchLimits


@dataclasses.dataclass(eq=False)
class _Ticket:
    """An `Encode` that is not answered yet."""

    worker: int
    number: int
    open_items: set[int]
    errors: dict[int, str] = dataclasses.field(default_factory=dict)
    encoded: int = 0


@dataclasses.dataclass
class _Waiting:
    item: EncodeItem
    tickets: list[_Ticket]


Answers = list[tuple[int, Encoded]]
"""(Http worker, what it is told)"""


class EncodeQueue:
    """First come, first served, by item."""

    def __init__(self, has_embedding: Callable[[int], bool]) -> None:
        """has_embedding: whether an item, by its number, needs no encoding."""
        self._has_embedding = has_embedding
        self._waiting: dict[int, _Waiting] = {}
        self._tickets: dict[tuple[int, int], _Ticket] = {}
        """By worker and number."""

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def workers(self) -> set[int]:
        """Http workers that wait for an answer."""
        return {worker for worker, _ in self._tickets}

    def add(self, message: Encode) -> Answers:
        """An answer at once if there is nothing to encode. What waits already is not asked for twice."""
        name = (message.worker, message.ticket)
        if name in self._tickets:
            return []
        items = {item.item_id: item for item in message.items if not self._has_embedding(item.item_id)}
        if not items:
            return [(message.worker, Encoded(message.ticket))]
        ticket = self._tickets[name] = _Ticket(*name, set(items))
        for item_id, item in items.items():
            self._waiting.setdefault(item_id, _Waiting(item, [])).tickets.append(ticket)
        return []

    def withdraw(self, message: Withdraw) -> None:
        """The ticket gets no answer any more; items that no other one waits for leave the queue."""
        ticket = self._tickets.pop((message.worker, message.ticket), None)
        if ticket is None:
            return
        for item_id in ticket.open_items:
            waiting = self._waiting[item_id]
            waiting.tickets.remove(ticket)
            if not waiting.tickets:
                del self._waiting[item_id]

    def next_batch(self, limits: BatchLimits) -> list[EncodeItem]:
        """Those that wait longest; they stay until `finish`."""
        return limits.first(waiting.item for waiting in self._waiting.values())

    def finish(self, item_id: int, error: str | None = None) -> Answers:
        """The item is encoded, or cannot be: answers to requests that waited for nothing else."""
        answers: Answers = []
        tickets = self._waiting.pop(item_id).tickets
        tickets[0].encoded += error is None
        for ticket in tickets:
            ticket.open_items.discard(item_id)
            if error is not None:
                ticket.errors[item_id] = error
            if not ticket.open_items:
                del self._tickets[ticket.worker, ticket.number]
                answers.append((ticket.worker, Encoded(ticket.number, ticket.errors, ticket.encoded)))
        return answers
