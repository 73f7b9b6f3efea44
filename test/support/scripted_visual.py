"""A Visual Server with a scripted encoder: `python -m support.scripted_visual`. Its embeddings follow from the image's bytes."""

from __future__ import annotations

import hashlib
import os
import sys
import time
from pathlib import Path

import numpy as np

from lightllm.ipc.child import Child, run_child
from lightllm.ipc.encoder_memory import EncoderMemory
from lightllm.visual.encoder import BatchLimits, EncoderInput, EncoderOutput
from lightllm.visual.process import run_visual

WIDTH = 8


def embedding_of(data: bytes, tokens: int) -> np.ndarray:
    seed = int.from_bytes(hashlib.sha256(data).digest()[:4], "little")
    return np.random.default_rng(seed).standard_normal((tokens, WIDTH), np.float32)


def gate_of(log: Path, image: bytes) -> Path:
    """Of an image whose bytes begin with "held": its encode does not end while this file is not there."""
    return log.with_name(f"{image.decode()}.gate")


class ScriptedEncoder:
    """Appends each image that it encodes to the file `SCRIPTED_LOG`, behind the server's rank. Bytes that begin with "bad" cannot be
    encoded, alone or with others."""

    def __init__(self, child: Child, rank: int) -> None:
        self.limits = BatchLimits(child.config.visual_infer_batch_size or 1, 1000)
        self.memory = EncoderMemory()
        self._rank = rank
        self._log = Path(os.environ["SCRIPTED_LOG"])

    def encode(self, images: list[EncoderInput]) -> list[EncoderOutput]:
        if any(image.data.startswith(b"bad") for image in images):
            raise RuntimeError("a bad image")
        with self._log.open("ab") as log:
            log.write(b"".join(b"%d %b\n" % (self._rank, image.data) for image in images))
        gates = [gate_of(self._log, image.data) for image in images if image.data.startswith(b"held")]
        while not all(gate.exists() for gate in gates):
            time.sleep(0.005)
        arrays = [embedding_of(image.data, image.tokens) for image in images]
        return [EncoderOutput("float32", list(array.shape), array.data) for array in arrays]

    def close(self) -> None:
        """There is nothing to end."""


def main(child: Child) -> None:
    run_visual(child, RANK, ScriptedEncoder)


if __name__ == "__main__":
    RANK = int(sys.argv[1])
    run_child(f"visual-{RANK}", main)
