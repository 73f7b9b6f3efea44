"""Images that are to be encoded, once each, however many requests wait for it. Pure: messages in, messages out."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable

from lightllm.protocol.images import Encode, Encoded, EncodeItem


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

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, message: Encode) -> Answers:
        """An answer at once if there is nothing to encode."""
        items = {item.item_id: item for item in message.items if not self._has_embedding(item.item_id)}
        if not items:
            return [(message.worker, Encoded(message.ticket))]
        ticket = _Ticket(message.worker, message.ticket, set(items))
        for item_id, item in items.items():
            self._waiting.setdefault(item_id, _Waiting(item, [])).tickets.append(ticket)
        return []

    def next_batch(self, limit: int) -> list[EncodeItem]:
        """Up to `limit` items, those that wait longest; they stay until `finish`."""
        return [waiting.item for waiting in itertools.islice(self._waiting.values(), limit)]

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
                answers.append((ticket.worker, Encoded(ticket.number, ticket.errors, ticket.encoded)))
        return answers
