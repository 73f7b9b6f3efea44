"""The Visual Server: the vision encoder between sockets and files.

Http Server --Encode, Withdraw--> here --embedding file, then Encoded--> Http Server
                                  here --encoded, failed (rpyc)--> Cache Manager

One image is encoded once: what is asked for while it is being encoded is found done afterwards. Requests for text pass this
process by.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Sequence

import msgspec
import zmq

from lightllm.ipc.channels import EVERY_EPOCH, PullChannel, PushChannel, make_context
from lightllm.ipc.child import Child
from lightllm.ipc.encoder_memory import write_encoder_memory
from lightllm.ipc.image_cache import ImageCache
from lightllm.protocol import codec
from lightllm.protocol.control import Command
from lightllm.protocol.images import EncodeItem, EncoderProgress, EncoderReady, Withdraw
from lightllm.visual.encode_items import encode_items
from lightllm.visual.encode_queue import Answers, EncodeQueue
from lightllm.visual.encoder import Encoder, EncoderInput

log = logging.getLogger("visual")

_STOP_SECONDS = 1.0
"""Seconds that a running encode gets after `stop` before the process ends under it."""


def run_visual(child: Child, rank: int, make_encoder: Callable[[Child, int], Encoder]) -> None:
    """The main of the Visual Server `rank` (of --visual_dp): runs until the Supervisor says stop (or is gone).

    make_encoder: loads the model, for this rank; called once the process can be told to stop.
    """
    start = time.perf_counter()
    stop_read, stop_write = os.pipe()

    def obey(command: Command) -> None:
        if command.action == "stop":
            os.write(stop_write, b"s")
            threading.Thread(target=_end_anyway, args=(child,), daemon=True).start()

    config = child.config
    child.beat.beat_in_thread()
    child.report("loading", "vision encoder")
    encoder = make_encoder(child, rank)
    write_encoder_memory(child.runtime, rank, encoder.memory)
    context = make_context()
    intake = PullChannel(context, child.runtime.visual_intake(rank), codec.to_visual, EVERY_EPOCH)
    workers = [
        PushChannel(context, child.runtime.http_results(worker), EVERY_EPOCH)
        for worker in range(config.httpserver_workers)
    ]
    server = VisualServer(rank, encoder, ImageCache(child.runtime), intake, workers)
    child.on_command(obey)
    child.report("ready", seconds={"vision encoder": time.perf_counter() - start})
    for channel in workers:
        channel.send(EncoderReady(rank))
    server.serve(stop_read)
    encoder.close()
    context.destroy(linger=0)
    _end(child)


def _end_anyway(child: Child) -> None:
    """An encode must not hold up the stop."""
    time.sleep(_STOP_SECONDS)
    _end(child)


def _end(child: Child) -> None:
    """At once: an interpreter that has loaded torch may take seconds to put in order what the kernel frees anyway."""
    child.report("stopped")
    os._exit(0)


class VisualServer:
    def __init__(
        self,
        rank: int,
        encoder: Encoder,
        cache: ImageCache,
        intake: PullChannel,
        workers: Sequence[PushChannel],
    ) -> None:
        """workers: the Http Servers' result sockets, by number."""
        self._rank = rank
        self._encoder = encoder
        self._cache = cache
        self._files = cache.files
        self._intake = intake
        self._workers = workers
        self._queue = EncodeQueue(self._files.has_embedding)

    def serve(self, stop_descriptor: int) -> None:
        """Blocks when there is nothing to do, ends when `stop_descriptor` becomes readable."""
        poller = zmq.Poller()
        poller.register(self._intake.socket, zmq.POLLIN)
        poller.register(stop_descriptor, zmq.POLLIN)
        while stop_descriptor not in dict(poller.poll(0 if self._queue else None)):
            self._receive()
            self._encode(self._queue.next_batch(self._encoder.limits))

    def _receive(self) -> None:
        """Takes all messages that are there. One that makes no sense is logged and dropped."""
        while (data := self._intake.receive_bytes()) is not None:
            try:
                message = self._intake.decode(data)
                if isinstance(message, Withdraw):
                    self._queue.withdraw(message)
                else:
                    self._answer(self._queue.add(message))
            except msgspec.MsgspecError as error:
                log.error("dropped a malformed message of %d bytes: %s", len(data), error)

    def _encode(self, items: list[EncodeItem]) -> None:
        errors: dict[int, str] = {}
        inputs: list[tuple[EncodeItem, EncoderInput]] = []
        for item in items:
            try:
                data = self._files.read_data(item.item_id)
                inputs.append((item, EncoderInput(data, item.params, item.tokens)))
            except OSError as error:
                errors[item.item_id] = f"its bytes are gone from the image cache: {error.strerror}"
        errors |= encode_items(self._encoder, self._files, inputs)
        if done := [item.item_id for item in items if item.item_id not in errors]:
            self._cache.encoded(done)
        if errors:
            self._cache.failed(list(errors))
        for item in items:
            self._answer(self._queue.finish(item.item_id, errors.get(item.item_id)))
        for worker in self._queue.workers if items else ():
            self._workers[worker].send(EncoderProgress(self._rank))

    def _answer(self, answers: Answers) -> None:
        for worker, message in answers:
            self._workers[worker].send(message)
