"""The other tensor parallel ranks of an encoder (--visual_tp): processes of a Visual Server, which is rank 0 itself.

rank 0 --EncodePixels, Rejoin--> every other rank

All ranks compute a batch together. When one fails in it, it leaves the group, so that none waits for it, and all join anew. One that
ends takes its Visual Server along, which the Supervisor starts again with all ranks; they end with the Visual Server too.
"""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import sys
import threading

import msgspec
import torch

from lightllm.config import ServerConfig
from lightllm.distributed.collectives import PeerLost
from lightllm.distributed.tp_group import TpGroup
from lightllm.ipc.channels import EVERY_EPOCH, PullChannel, PushChannel, make_context
from lightllm.ipc.child import CHANNEL_VARIABLE, Child
from lightllm.ipc.openmp_files import remove_openmp_registration
from lightllm.models.vision.model import Pixels, VisionModel
from lightllm.protocol import codec
from lightllm.protocol.control import Status
from lightllm.protocol.images import EncodePixels, PixelArray, Rejoin, ToEncoderRank
from lightllm.visual.encoder_rank import load_encoder_rank

log = logging.getLogger("visual")


class OtherRanks:
    """Rank 0's side. Starts their processes at once."""

    def __init__(self, child: Child, server: int) -> None:
        """child: this process; server: number of the Visual Server that it is."""
        self.meeting = str(child.runtime.path / f"encoder-ranks-{server}-{os.getpid()}")
        """File in which the ranks find each other."""
        self.loaded = False
        self._child = child
        self._closing = False
        self._context = make_context()
        self._channels: list[PushChannel] = []
        self._processes: list[subprocess.Popen[bytes]] = []
        for rank in range(1, child.config.visual_tp):
            self._channels.append(
                PushChannel(self._context, child.runtime.visual_rank(server, rank), EVERY_EPOCH)
            )
            self._start(server, rank)

    def send(self, message: ToEncoderRank) -> None:
        for channel in self._channels:
            channel.send(message)

    def close(self) -> None:
        """Ends them."""
        self._closing = True
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.wait()
            remove_openmp_registration(process.pid)
        self._context.destroy(linger=0)

    def _start(self, server: int, rank: int) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            arguments = ["--rank", str(server), "--tp_rank", str(rank), "--meeting", self.meeting]
            process = subprocess.Popen(
                [sys.executable, "-m", "lightllm.visual", *arguments],
                env=os.environ | {CHANNEL_VARIABLE: str(theirs.fileno())},
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
            )
        self._processes.append(process)
        threading.Thread(target=self._watch, args=(process, ours, rank), daemon=True).start()

    def _watch(self, process: subprocess.Popen[bytes], channel: socket.socket, rank: int) -> None:
        """Ends this process when the rank ends; while it loads, with the reason that the rank reports."""
        reason, remedy = f"tensor parallel rank {rank} of the encoder has ended", ""
        with channel.makefile("rb") as lines:
            for line in lines:
                status = msgspec.json.decode(line, type=Status)
                if status.state == "failed":
                    reason, remedy = status.detail, status.remedy
        process.wait()
        if self._closing:
            return
        log.error("%s", reason)
        if not self.loaded:
            self._child.report("failed", reason, remedy)
        os._exit(1)


class EncoderGroup:
    """All ranks of an encoder as one model, in rank 0."""

    def __init__(self, config: ServerConfig, server: int, others: OtherRanks | None) -> None:
        """Raises `StartupError`."""
        self._others = others
        meeting = others.meeting if others else ""
        self.model, self._group = load_encoder_rank(config, server, 0, meeting)
        if others:
            others.loaded = True

    def encode(self, images: list[Pixels]) -> list[torch.Tensor]:
        """As `VisionModel.encode`."""
        if self._others is None:
            return self.model.encode(images)
        self._others.send(EncodePixels([PixelArray(image.values.numpy(), image.grid) for image in images]))
        try:
            return self.model.encode(images)
        except Exception:
            self._others.send(Rejoin())
            self._rejoin()
            raise

    def close(self) -> None:
        self._group.drop()
        if self._others is not None:
            self._others.close()

    def _rejoin(self) -> None:
        try:
            self._group.reconnect()
        except PeerLost as error:
            log.error("%s: the visual server ends", error)
            os._exit(1)


def run_other_rank(child: Child, server: int, rank: int, meeting: str) -> None:
    """The main of a rank from 1 on: until rank 0 is gone, or cannot be joined."""
    model, group = load_encoder_rank(child.config, server, rank, meeting)
    channel = PullChannel(
        make_context(), child.runtime.visual_rank(server, rank), codec.to_encoder_rank, EVERY_EPOCH
    )
    child.report("ready")
    while True:
        channel.wait(None)
        message = channel.receive()
        if isinstance(message, Rejoin):
            group.reconnect()
        elif isinstance(message, EncodePixels):
            _encode(model, group, message)


def _encode(model: VisionModel, group: TpGroup, message: EncodePixels) -> None:
    try:
        model.encode([Pixels(torch.tensor(image.values), image.grid) for image in message.images])
    except Exception as error:  # rank 0 notices, and says what the request is told
        log.warning("a batch of images failed: %s", error)
        group.drop()
