"""What an Http worker waits for while the Visual Server encodes, is restarted, or does not answer."""

from __future__ import annotations

import asyncio

import pytest

from lightllm.errors import ServerOverloaded
from lightllm.httpserver.encode_tickets import EncodeTickets
from lightllm.protocol.images import Encode, Encoded, EncodeItem, EncoderReady

ITEM = EncodeItem(5, "key", 2**24, 9)


def test_each_request_gets_the_answer_to_its_own_ticket() -> None:
    async def run() -> list[dict[int, str]]:
        sent: list[Encode] = []
        tickets = EncodeTickets(3, sent.append)
        waiting = [asyncio.create_task(tickets.encode([ITEM])) for _ in range(2)]
        await asyncio.sleep(0)
        first, second = sent
        assert (first.worker, first.items) == (3, [ITEM]) and first.ticket != second.ticket
        tickets.on_encoded(Encoded(second.ticket, {5: "no image"}))
        tickets.on_encoded(Encoded(second.ticket))
        tickets.on_encoded(Encoded(first.ticket))
        tickets.on_encoded(Encoded(first.ticket - 1))
        return await asyncio.gather(*waiting)

    assert asyncio.run(run()) == [{}, {5: "no image"}]


def test_what_a_visual_server_has_not_answered_is_sent_to_the_next_one() -> None:
    async def run() -> None:
        sent: list[Encode] = []
        tickets = EncodeTickets(0, sent.append)
        answered, waiting = (asyncio.create_task(tickets.encode([ITEM])) for _ in range(2))
        await asyncio.sleep(0)
        tickets.on_encoded(Encoded(sent[0].ticket))
        await answered
        tickets.on_ready(EncoderReady(0))
        assert sent[2:] == sent[1:2]
        tickets.on_encoded(Encoded(sent[2].ticket))
        await waiting
        tickets.on_ready(EncoderReady(0))
        assert len(sent) == 3

    asyncio.run(run())


def test_a_request_that_waits_too_long_is_told_to_come_again() -> None:
    tickets = EncodeTickets(0, lambda message: None, seconds=0.01)
    with pytest.raises(ServerOverloaded) as refused:
        asyncio.run(tickets.encode([ITEM]))
    assert refused.value.retry_after
