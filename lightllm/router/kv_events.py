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
"""Batches that can be replayed."""
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
        self._live.sndhwm = _UNREAD
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
        """Sends what has happened, then answers who asks for earlier batches."""
        if self._ledger.has_news:
            self._publish(self._ledger.take())
        while True:
            try:
                asker, *frames = self.replays.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            with contextlib.suppress(zmq.Again):  # the one who asked reads no more
                self._replay(asker, int.from_bytes(frames[-1], "big") if frames else 0)

    def _publish(self, events: list[KvEvent]) -> None:
        self._number += 1
        data = _encode(events)
        self._kept.append((self._number, data))
        self._kept_bytes += len(data)
        while len(self._kept) > _KEPT or self._kept_bytes > _KEPT_BYTES:
            self._kept_bytes -= len(self._kept.popleft()[1])
        self._live.send_multipart([_TOPIC, self._number.to_bytes(8, "big"), data])

    def _replay(self, asker: bytes, first: int) -> None:
        if self._kept and first < self._kept[0][0] and self._scheduler is not None:
            everything = self._ledger.everything(self._scheduler.cached_nodes())
            batches = [(self._number, _encode(everything))]
        else:
            batches = [(number, data) for number, data in self._kept if number >= first]
        for number, data in batches:
            self.replays.send_multipart([asker, b"", number.to_bytes(8, "big"), data], zmq.NOBLOCK)
        self.replays.send_multipart([asker, b"", END, b""], zmq.NOBLOCK)


def replay_port(port: int) -> int:
    return port + 1


def _next_port(endpoint: str) -> str:
    parts = urlsplit(endpoint)
    assert parts.port is not None
    return f"{endpoint.rsplit(':', 1)[0]}:{replay_port(parts.port)}"


def _encode(events: list[KvEvent]) -> bytes:
    return msgspec.msgpack.encode(KvEventBatch(time.time(), events))
