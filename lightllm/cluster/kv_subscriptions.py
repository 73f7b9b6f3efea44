"""Hears the cache events of all workers that publish them, for `kv_aware`.

subscribe ──> replay of all ──> live batches ── one is missing ──> replay from there ──> live ...
    ^                                └── no word of a replay, a gap in it, nonsense ──> the worker is judged by what it was sent
    └──────────────────────────────────────────── after a pause ┘
"""

from __future__ import annotations

import asyncio
import logging
from urllib.parse import urlsplit

import msgspec
import zmq
import zmq.asyncio

from lightllm.cluster.dispatch.kv_aware import KvAware
from lightllm.cluster.registry import Registry
from lightllm.cluster.worker import State, Worker
from lightllm.protocol.kv_events import END, AllBlocksCleared, KvEventBatch

_log = logging.getLogger(__name__)
_LOOK_SECONDS = 1.0
_REPLAY_SECONDS = 5.0
_PAUSE_SECONDS = 2.0
_SILENT_SECONDS = 5.0
"""Without a batch, then it is asked whether there was one: a last one may be lost, and the worker be another by now."""
_SETTLE_SECONDS = 2.0
_HEARTBEAT_MS = 5000
_MOST_BLOCKS = 1 << 22
"""Of one worker: 268 million tokens."""
_MOST_REPLAYED = 1 << 16
"""Batches of one answer."""
_EVENTS_AT_ONCE = 256
_decode = msgspec.msgpack.Decoder(KvEventBatch).decode


class _Lost(Exception):
    """What the worker has is not known any more."""


class KvSubscriptions:
    def __init__(self, registry: Registry, policy: KvAware) -> None:
        self._registry = registry
        self._policy = policy
        self._context = zmq.asyncio.Context()
        self._tasks: dict[tuple[str, str, int], asyncio.Task[None]] = {}
        """By URL, life and port of a worker."""

    async def run(self) -> None:
        """For ever; ends all when it is cancelled."""
        try:
            while True:
                self._reconcile()
                await asyncio.sleep(_LOOK_SECONDS)
        finally:
            for task in self._tasks.values():
                task.cancel()
            await asyncio.gather(*self._tasks.values(), return_exceptions=True)
            self._context.destroy(linger=0)

    def _reconcile(self) -> None:
        wanted = {
            (worker.url, worker.description.worker_id, worker.description.kv_events_port): worker
            for worker in self._registry
            if worker.description.kv_events_port and worker.state is not State.OUT
        }
        for key in [key for key in self._tasks if key not in wanted]:
            self._tasks.pop(key).cancel()
        for key, worker in wanted.items():
            if key not in self._tasks:
                self._tasks[key] = asyncio.ensure_future(self._follow(worker))

    async def _follow(self, worker: Worker) -> None:
        told = ""
        while True:
            try:
                with _Feed(self._context, worker, self._policy) as feed:
                    await feed.follow()
            except (_Lost, zmq.ZMQError, msgspec.MsgspecError, ValueError) as error:
                if str(error) != told:
                    told = str(error)
                    _log.warning("cache events of %s: %s", worker.url, told)
            finally:
                self._policy.lose_touch(worker.url)
            await asyncio.sleep(_PAUSE_SECONDS)


class _Feed:
    """One connection to one worker."""

    def __init__(self, context: zmq.asyncio.Context, worker: Worker, policy: KvAware) -> None:
        self._url = worker.url
        self._policy = policy
        host = urlsplit(worker.description.api_url).hostname or ""
        shown, port = (f"[{host}]" if ":" in host else host), worker.description.kv_events_port
        self._live = context.socket(zmq.SUB)
        self._replays = context.socket(zmq.DEALER)
        for socket in (self._live, self._replays):
            socket.linger = 0
            socket.ipv6 = ":" in host
            socket.heartbeat_ivl = _HEARTBEAT_MS
            socket.heartbeat_timeout = 3 * _HEARTBEAT_MS
        self._live.rcvhwm = 0
        self._live.subscribe(b"")
        self._live.connect(f"tcp://{shown}:{port}")
        self._replays.connect(f"tcp://{shown}:{port + 1}")
        self._last = -1
        """Number of the last batch that has been heard; -1: nothing is known."""
        self._settled = 0.0
        """Until then batches may come that a replay has brought already."""

    def __enter__(self) -> _Feed:
        return self

    def __exit__(self, *_: object) -> None:
        self._live.close()
        self._replays.close()

    async def follow(self) -> None:
        """Until the worker is lost: raises `_Lost`, or what is wrong with what it says."""
        await self._replay(0)
        _log.info("hears the cache events of %s", self._url)
        while True:
            try:
                _, number, data = await asyncio.wait_for(self._live.recv_multipart(), _SILENT_SECONDS)
            except TimeoutError:
                await self._replay(self._last + 1)
                continue
            seen = int.from_bytes(number, "big")
            if seen > self._last + 1:
                await self._replay(self._last + 1)
            if seen > self._last:
                await self._apply(seen, data)
            elif asyncio.get_running_loop().time() > self._settled:
                raise _Lost("its numbers have started anew")

    async def _replay(self, first: int) -> None:
        await self._replays.send_multipart([b"", first.to_bytes(8, "big")])
        for _ in range(_MOST_REPLAYED):
            try:
                frames = await asyncio.wait_for(self._replays.recv_multipart(), _REPLAY_SECONDS)
            except TimeoutError:
                raise _Lost("no answer to a question for what was missed") from None
            _, number, data = frames
            if number == END:
                self._settled = asyncio.get_running_loop().time() + _SETTLE_SECONDS
                return
            await self._apply(int.from_bytes(number, "big"), data)
        raise _Lost("a replay without an end")

    async def _apply(self, number: int, data: bytes) -> None:
        """What follows what is known, or begins with nothing. Raises `_Lost`: a batch is missing, so what is known is wrong."""
        events = _decode(data).events
        if not (events and isinstance(events[0], AllBlocksCleared)) and (
            self._last < 0 or number != self._last + 1
        ):
            raise _Lost(f"batches are missing between {self._last} and {number}")
        self._last = number
        for start in range(0, len(events), _EVENTS_AT_ONCE):
            self._policy.hear(self._url, events[start : start + _EVENTS_AT_ONCE])
            await asyncio.sleep(0)  # much may come at once, and streams do not wait for all of it
        if (self._policy.blocks(self._url) or 0) > _MOST_BLOCKS:
            raise _Lost(f"more than {_MOST_BLOCKS} blocks")
