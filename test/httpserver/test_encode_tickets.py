"""What an Http worker waits for while the Visual Servers encode, are restarted, or do not answer."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine
from typing import Any

import pytest

from lightllm.errors import ServerOverloaded
from lightllm.httpserver.encode_tickets import EncodeTickets, server_of
from lightllm.protocol.images import (
    Encode,
    Encoded,
    EncodeItem,
    EncoderProgress,
    EncoderReady,
    ToVisual,
    Withdraw,
)

ITEM = EncodeItem(5, "key", 2**24, 9)


class Sent:
    """What each of some Visual Servers was sent."""

    def __init__(self, servers: int = 1, seconds: float = 60.0) -> None:
        self.messages: list[list[ToVisual]] = [[] for _ in range(servers)]
        self.tickets = EncodeTickets(3, [messages.append for messages in self.messages], seconds)

    def encodes(self, server: int = 0) -> list[Encode]:
        return [message for message in self.messages[server] if isinstance(message, Encode)]

    def withdrawn(self, server: int = 0) -> list[int]:
        return [message.ticket for message in self.messages[server] if isinstance(message, Withdraw)]


async def started(*requests: Coroutine[Any, Any, dict[int, str]]) -> list[asyncio.Task[dict[int, str]]]:
    """Tasks of which each has sent what it wants encoded."""
    tasks = [asyncio.create_task(request) for request in requests]
    await asyncio.sleep(0)
    return tasks


def test_each_request_gets_the_answer_to_its_own_ticket() -> None:
    async def run() -> list[dict[int, str]]:
        sent = Sent()
        tickets = sent.tickets
        waiting = await started(tickets.encode([ITEM]), tickets.encode([ITEM]))
        first, second = sent.encodes()
        assert (first.worker, first.items) == (3, [ITEM]) and first.ticket != second.ticket
        tickets.on_encoded(Encoded(second.ticket, {5: "no image"}))
        tickets.on_encoded(Encoded(second.ticket))
        tickets.on_encoded(Encoded(first.ticket))
        tickets.on_encoded(Encoded(first.ticket - 1))
        answers = await asyncio.gather(*waiting)
        assert not sent.withdrawn()
        return answers

    assert asyncio.run(run()) == [{}, {5: "no image"}]


def test_what_a_visual_server_has_not_answered_is_sent_to_the_next_one() -> None:
    async def run() -> None:
        sent = Sent()
        tickets = sent.tickets
        answered, waiting = await started(tickets.encode([ITEM]), tickets.encode([ITEM]))
        tickets.on_encoded(Encoded(sent.encodes()[0].ticket))
        await answered
        tickets.on_ready(EncoderReady(0))
        assert sent.encodes()[2:] == sent.encodes()[1:2]
        tickets.on_encoded(Encoded(sent.encodes()[2].ticket))
        await waiting
        tickets.on_ready(EncoderReady(0))
        assert len(sent.encodes()) == 3

    asyncio.run(run())


def test_each_of_several_visual_servers_has_its_own_images_and_is_asked_again_for_those_alone() -> None:
    keys = [f"key {number}" for number in range(20)]
    items = [EncodeItem(number, key, 2**24, 9) for number, key in enumerate(keys)]

    async def run() -> None:
        sent = Sent(2)
        tickets = sent.tickets
        (waiting,) = await started(tickets.encode(items))
        (first,), (second,) = sent.encodes(0), sent.encodes(1)
        assert sorted(item.item_id for item in first.items + second.items) == list(range(20))
        assert all(server_of(item.key, 2) == 0 for item in first.items) and first.items and second.items
        tickets.on_ready(EncoderReady(1))
        assert sent.encodes(0) == [first] and sent.encodes(1) == [second, second]
        tickets.on_encoded(Encoded(first.ticket, {first.items[0].item_id: "one"}))
        assert not waiting.done()
        tickets.on_encoded(Encoded(second.ticket, {second.items[0].item_id: "two"}))
        assert await waiting == {first.items[0].item_id: "one", second.items[0].item_id: "two"}

    asyncio.run(run())


def test_a_request_that_ends_withdraws_what_has_not_been_answered() -> None:
    async def run() -> None:
        sent = Sent()
        tickets = sent.tickets
        leaving, staying = await started(tickets.encode([ITEM]), tickets.encode([ITEM]))
        leaving.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await leaving
        assert sent.withdrawn() == [sent.encodes()[0].ticket]
        tickets.on_encoded(Encoded(sent.encodes()[1].ticket))
        await staying
        assert len(sent.withdrawn()) == 1

    asyncio.run(run())


def test_a_silent_visual_server_is_given_up_and_one_that_makes_progress_or_starts_anew_is_not() -> None:
    async def run() -> None:
        sent = Sent(seconds=1.0)
        tickets = sent.tickets
        (waiting,) = await started(tickets.encode([ITEM]))
        for sign in (EncoderProgress(0), EncoderReady(0), EncoderProgress(0)):
            await asyncio.sleep(0.4)
            if isinstance(sign, EncoderReady):
                tickets.on_ready(sign)
            else:
                tickets.on_progress(sign)
        assert not waiting.done()
        with pytest.raises(ServerOverloaded) as refused:
            await waiting
        assert refused.value.retry_after
        assert sent.withdrawn() == [sent.encodes()[0].ticket]

    asyncio.run(run())
