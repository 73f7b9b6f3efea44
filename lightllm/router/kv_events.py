"""Publishes the events of the prefix cache (`protocol/kv_events.py`): one batch a turn of the Router, if anything has happened."""

from __future__ import annotations

import contextlib
import logging
import time
from collections import deque
from urllib.parse import urlsplit

import msgspec
import zmq

from lightllm.errors import StartupError
from lightllm.protocol.kv_events import END, KvEvent, KvEventBatch
from lightllm.router.memory.block_ledger import BlockLedger
from lightllm.router.scheduler import Scheduler

_KEPT = 4096
"""Batches that are kept for replays."""
_REPLAYED = 512
"""Batches that are replayed one by one; whoever has missed more is told all that there is, as one. A socket holds so many for one
that reads slowly."""
_QUESTION_BYTES = 64
_KEPT_BYTES = 64 << 20
_UNREAD = 100_000
"""Batches that a subscriber may be behind; it loses further ones, and sees so by their numbers."""
_TOPIC = b"kv-events"

_log = logging.getLogger("router")


class KvEventPublisher:
    def __init__(self, context: zmq.Context, endpoint: str, token_ids: bool) -> None:
        """endpoint: `tcp://HOST:PORT`; replays are asked for at the next port. Raises `StartupError`."""
        self._token_ids = token_ids
        self._scheduler: Scheduler | None = None
        self._ledger = BlockLedger()
        # Numbers of another life of this process are never taken for those of this one.
        self._number = int(time.time()) << 20
        self._kept: deque[tuple[int, bytes]] = deque()
        self._kept_bytes = 0
        self._live = context.socket(zmq.PUB)
        self.replays = context.socket(zmq.ROUTER)
        """To be polled: `turn` answers what has come."""
        self._whole: tuple[int, bytes] | None = None
        """The last batch with all that there is, and its number."""
        self._live.sndhwm = _UNREAD
        self.replays.router_mandatory = True  # what does not go out is an error, and not lost in silence
        self.replays.sndhwm = 2 * _REPLAYED
        self.replays.maxmsgsize = _QUESTION_BYTES
        for socket, address in ((self._live, endpoint), (self.replays, _next_port(endpoint))):
            socket.linger = 0
            try:
                socket.bind(address)
            except zmq.ZMQError as error:
                self.close()
                raise StartupError(
                    f"--kv_events: {address} cannot be bound: {error}.", "Name free ports."
                ) from error

    def close(self) -> None:
        self._live.close()
        self.replays.close()

    def attach(self, scheduler: Scheduler) -> None:
        """Another life: its cache is empty."""
        self._scheduler = scheduler
        self._ledger = BlockLedger(self._token_ids)
        scheduler.watch_cache(self._ledger)

    def turn(self) -> None:
        """Sends what has happened, then answers one question for earlier batches: rounds do not wait for many of them."""
        if self._ledger.has_news:
            self._publish(self._ledger.take())
        try:
            asker, *frames = self.replays.recv_multipart(zmq.NOBLOCK)
        except zmq.Again:
            return
        if not frames or len(frames[-1]) != 8:
            return
        # Who asked and reads no more, or has left, gets no end of the answer, and asks again.
        with contextlib.suppress(zmq.ZMQError):
            self._replay(asker, int.from_bytes(frames[-1], "big"))

    def _publish(self, events: list[KvEvent]) -> None:
        self._number += 1
        data = _encode(events)
        self._kept.append((self._number, data))
        self._kept_bytes += len(data)
        while len(self._kept) > _KEPT or self._kept_bytes > _KEPT_BYTES:
            self._kept_bytes -= len(self._kept.popleft()[1])
        self._live.send_multipart([_TOPIC, self._number.to_bytes(8, "big"), data])

    def _replay(self, asker: bytes, first: int) -> None:
        kept_from = self._number - len(self._kept) + 1
        missed = self._number - first + 1
        if first == self._number + 1:
            batches = []
        elif kept_from <= first <= self._number and missed <= _REPLAYED:
            batches = [self._kept[index] for index in range(first - kept_from, len(self._kept))]
        else:  # too much, or the numbers of another life
            batches = [self._all_there_is()]
        for number, data in batches:
            self.replays.send_multipart([asker, b"", number.to_bytes(8, "big"), data], zmq.NOBLOCK)
        self.replays.send_multipart([asker, b"", END, b""], zmq.NOBLOCK)

    def _all_there_is(self) -> tuple[int, bytes]:
        if self._whole is None or self._whole[0] != self._number:
            nodes = [] if self._scheduler is None else self._scheduler.cached_nodes()
            self._whole = self._number, _encode(self._ledger.everything(nodes))
        return self._whole


def replay_port(port: int) -> int:
    return port + 1


def _next_port(endpoint: str) -> str:
    parts = urlsplit(endpoint)
    assert parts.port is not None
    return f"{endpoint.rsplit(':', 1)[0]}:{replay_port(parts.port)}"


def _encode(events: list[KvEvent]) -> bytes:
    return msgspec.msgpack.encode(KvEventBatch(time.time(), events))
