"""The Cache Manager Server: rpyc calls around an `ImageTable`, and the files that only this process removes.

Http Servers, Visual Servers --rpyc--> here; one thread, so that a process that dies can hold no lock.

Another Cache Manager goes on where one was killed. Whole embeddings come back; what clients hold they take up again, with the
same ids. Until all Http Servers have done so, or some seconds have passed, nothing is evicted and no new item is made.
"""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path

import msgspec

from lightllm.cache.table import ImageTable
from lightllm.cache.virtual_ids import END_OF_VIRTUAL_IDS, VirtualIds
from lightllm.ipc.beats import BEAT_SECONDS
from lightllm.ipc.child import Child
from lightllm.ipc.image_files import ImageFiles
from lightllm.ipc.rpc_loop import Handler, RpcLoop
from lightllm.ipc.whole_files import write_whole
from lightllm.protocol import codec
from lightllm.protocol.control import Command
from lightllm.protocol.images import Full, HeldItems, Hold, Introduce, ItemIds, Welcome

log = logging.getLogger("cache")

_RECOVERY_SECONDS = 3.0
"""Seconds after a restart in which Http Servers may take up what they hold."""
_IDS_AHEAD = 2**20
"""Virtual ids that may be handed out until the next one to use after a restart is written down again."""

_HOLD, _INTRODUCE, _ITEM_IDS = (codec.Decoder(kind) for kind in (Hold, Introduce, ItemIds))


def main(child: Child) -> None:
    """Runs until the Supervisor says stop (or is gone)."""
    stop_read, stop_write = os.pipe()

    def obey(command: Command) -> None:
        if command.action == "stop":
            os.write(stop_write, b"s")

    config = child.config
    assert config.cache_capacity_bytes is not None
    manager = CacheManager(
        ImageFiles(child.runtime.images_dir), config.cache_capacity, config.cache_capacity_bytes,
        config.httpserver_workers,
    )  # fmt: skip
    loop = RpcLoop(child.runtime.cache_control, manager.handlers, manager.drop_client)
    child.on_command(obey)
    child.report("ready")

    def tick() -> float:
        child.beat.beat()
        wait = manager.tick()
        return BEAT_SECONDS if wait is None else min(wait, BEAT_SECONDS)

    loop.run(stop_read, tick)


class CacheManager:
    def __init__(self, files: ImageFiles, capacity: int, capacity_bytes: int, workers: int) -> None:
        """workers: Http Servers."""
        self._files = files
        self._ids_file = IdsFile(files.folder / "ids")
        ids = self._ids_file.read()
        self._table = ImageTable(capacity, capacity_bytes, ids or VirtualIds(), files.remove)
        self._awaited = set(range(workers))
        """Http Servers that have not introduced themselves since the start."""
        self._recovery_end = time.monotonic() + _RECOVERY_SECONDS
        self.handlers: dict[str, Handler] = {
            "introduce": self._introduce,
            "hold": self._hold,
            "release": self._release,
            "stored": self._stored,
            "encoded": self._encoded,
            "failed": self._failed,
            "stats": lambda client, payload: codec.encode(self._table.stats()),
        }
        if ids is None:
            self._ids_file.write(self._table.ids)
        else:
            self._recover()

    def tick(self) -> float | None:
        """Ends the recovery when it is time; seconds until that."""
        if not self._table.recovering:
            return None
        left = self._recovery_end - time.monotonic()
        if left > 0 and self._awaited:
            return left
        self._table.end_recovery()
        for item_id, _ in list(self._files.items()):
            if item_id not in self._table:
                self._files.remove(item_id)
        self._files.remove_unfinished()
        return None

    def drop_client(self, client: int) -> None:
        self._table.drop_client(client)
        self._files.remove_unfinished()

    def _recover(self) -> None:
        self._table.recovering = True
        for item_id, is_embedding in list(self._files.items()):
            if is_embedding:
                self._restore(item_id)
        log.warning("the image cache was restarted: %d images are there", self._table.stats().restored)

    def _restore(self, item_id: int) -> None:
        try:
            header = self._files.open_embedding(item_id).header
            size = self._files.size_of_embedding(item_id)
        except (OSError, ValueError, msgspec.MsgspecError) as error:
            log.error("an embedding cannot be read and is removed: %s", error)
            self._files.remove(item_id)
            return
        if item_id not in self._table and self._table.restore(item_id, header.key, header.tokens, size):
            self._files.remove_data(item_id)

    # -- calls

    def _introduce(self, client: int, payload: bytes) -> bytes:
        call = _INTRODUCE.decode(payload)
        lost = [
            held.item_id
            for held in call.holding
            if not self._table.take_up(client, held, self._files.has_data(held.item_id))
        ]
        self._awaited.discard(call.worker)
        self._files.remove_unfinished()
        return codec.encode(Welcome(lost))

    def _hold(self, client: int, payload: bytes) -> bytes:
        answer = self._table.hold(client, _HOLD.decode(payload).wants)
        if isinstance(answer, Full):
            return codec.encode(answer)
        self._ids_file.keep_ahead(self._table.ids)
        return codec.encode(HeldItems([*map(self._table.held, answer)], self._table.ids.cycle))

    def _release(self, client: int, payload: bytes) -> bytes:
        self._table.release(client, _ITEM_IDS.decode(payload).item_ids)
        return b""

    def _stored(self, client: int, payload: bytes) -> bytes:
        for item_id in _ITEM_IDS.decode(payload).item_ids:
            there = self._table.stored(item_id)
            if not there and not self._table.recovering or self._files.has_embedding(item_id):
                self._files.remove_data(item_id)
        return b""

    def _encoded(self, client: int, payload: bytes) -> bytes:
        for item_id in _ITEM_IDS.decode(payload).item_ids:
            if item_id in self._table:
                self._take_embedding(item_id)
            elif self._table.recovering:
                self._restore(item_id)
            else:
                self._files.remove(item_id)
        return b""

    def _take_embedding(self, item_id: int) -> None:
        try:
            self._table.encoded(item_id, self._files.size_of_embedding(item_id))
            self._files.remove_data(item_id)
        except ValueError:
            self._files.remove_embedding(item_id)
            raise

    def _failed(self, client: int, payload: bytes) -> bytes:
        for item_id in _ITEM_IDS.decode(payload).item_ids:
            self._table.failed(item_id)
        return b""


class _State(msgspec.Struct, array_like=True):
    cycle: int
    next_id: int
    kept: list[tuple[int, int]]


class IdsFile:
    """Where another Cache Manager begins to hand out ids: beyond all that were handed out."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._written = _State(0, 0, [])

    def read(self) -> VirtualIds | None:
        """None: there was no Cache Manager before."""
        try:
            self._written = msgspec.msgpack.decode(self._path.read_bytes(), type=_State)
        except FileNotFoundError:
            return None
        return VirtualIds(self._written.cycle, self._written.next_id, self._written.kept)

    def keep_ahead(self, ids: VirtualIds) -> None:
        """To be called before a client learns of new ids."""
        if (ids.cycle, ids.next_id) > (self._written.cycle, self._written.next_id):
            self.write(ids)

    def write(self, ids: VirtualIds) -> None:
        ahead = min(ids.next_id + _IDS_AHEAD, END_OF_VIRTUAL_IDS)
        self._written = _State(ids.cycle, ahead, ids.kept)
        write_whole(self._path, msgspec.msgpack.encode(self._written))
