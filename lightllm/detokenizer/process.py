"""The Detokenizer process: sockets around a `Detokenizer`.

Router --AddRequest, RoundTokens--> here --TextDeltas--> Http Server (one message a worker and round)
Router --Hello-->                   here --Hello--> Http Servers
                                    here --AbortRequest(reason="stop")--> Router
"""

from __future__ import annotations

import logging
import os
import time

import msgspec
import zmq

from lightllm.detokenizer.detokenizer import Detokenizer, MalformedMessage
from lightllm.ipc.beats import BEAT_SECONDS, Beat
from lightllm.ipc.channels import Epoch, PullChannel, PushChannel, make_context
from lightllm.ipc.child import Child
from lightllm.model_folder.config import eos_token_ids
from lightllm.model_folder.location import resolve_model_dir
from lightllm.protocol import codec
from lightllm.protocol.control import Command
from lightllm.protocol.messages import Hello
from lightllm.tokenizer import load_tokenizer

logger = logging.getLogger("lightllm.detokenizer")


def main(child: Child) -> None:
    """Runs until the Supervisor says stop (or is gone)."""
    start = time.perf_counter()
    stop_read, stop_write = os.pipe()

    def obey(command: Command) -> None:
        if command.action == "stop":
            os.write(stop_write, b"s")

    child.report("loading", "tokenizer")
    context = make_context()
    epoch = Epoch(child.runtime.epoch)
    intake = PullChannel(context, child.runtime.detokenizer_intake, codec.to_detokenizer, epoch)
    config = child.config
    model_dir = resolve_model_dir(config.model_dir, logger.info)
    tokenizer = load_tokenizer(
        model_dir, trust_remote_code=config.trust_remote_code, with_chat_template=False
    )
    detokenizer = Detokenizer(tokenizer, eos_token_ids(model_dir, config.eos_id), config.httpserver_workers)
    router = PushChannel(context, child.runtime.router_intake, epoch)
    workers = [
        PushChannel(context, child.runtime.http_results(worker), epoch)
        for worker in range(config.httpserver_workers)
    ]
    child.on_command(obey)
    child.report("ready", seconds={"tokenizer": time.perf_counter() - start})
    serve(detokenizer, epoch, intake, router, workers, stop_read, child.beat)
    context.destroy(linger=0)


def serve(
    detokenizer: Detokenizer,
    epoch: Epoch,
    intake: PullChannel,
    router: PushChannel,
    workers: list[PushChannel],
    stop_descriptor: int,
    beat: Beat,
) -> None:
    """The main loop: sleeps when there is nothing to do, ends when `stop_descriptor` becomes readable."""
    poller = zmq.Poller()
    poller.register(intake.socket, zmq.POLLIN)
    poller.register(stop_descriptor, zmq.POLLIN)
    while True:
        beat.beat()
        ready = dict(poller.poll(int(BEAT_SECONDS * 1000)))
        if stop_descriptor in ready:
            return
        while step(detokenizer, epoch, intake, router, workers):
            beat.beat()


def step(
    detokenizer: Detokenizer,
    epoch: Epoch,
    intake: PullChannel,
    router: PushChannel,
    workers: list[PushChannel],
) -> bool:
    """Handles one message; False if there is none. A message that makes no sense is logged and dropped."""
    data = intake.receive_bytes()
    if data is None:
        return False
    try:
        message = intake.decode(data)
        if isinstance(message, Hello):
            if message.epoch > epoch.number:
                detokenizer.drop_streams()
                epoch.raise_to(message.epoch)
            for channel in workers:
                channel.send(message)
            return True
        output = detokenizer.handle(message)
    except (msgspec.MsgspecError, MalformedMessage) as error:
        logger.error("dropped a malformed message of %d bytes: %s", len(data), error)
        return True
    except Exception:  # one request's trouble must not end the text of all others
        logger.exception("dropped a message of %d bytes because of an unexpected error", len(data))
        return True
    for abort in output.aborts:
        router.send(abort)
    for worker, deltas in output.deltas.items():
        workers[worker].send(deltas)
    return True
