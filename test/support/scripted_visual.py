"""A Visual Server with a scripted encoder: `python -m support.scripted_visual`. Its embeddings follow from the image's bytes."""

from __future__ import annotations

import hashlib
import os
import time

import numpy as np

from lightllm.ipc.child import Child, run_child
from lightllm.visual.encoder import EncoderInput, EncoderOutput
from lightllm.visual.process import run_visual

WIDTH = 8


def embedding_of(data: bytes, tokens: int) -> np.ndarray:
    seed = int.from_bytes(hashlib.sha256(data).digest()[:4], "little")
    return np.random.default_rng(seed).standard_normal((tokens, WIDTH), np.float32)


class ScriptedEncoder:
    """Appends each image that it encodes to the file `SCRIPTED_LOG`. Bytes that begin with "bad" cannot be encoded, alone or
    with others; those that begin with "slow" take 0.3 s."""

    def encode(self, images: list[EncoderInput]) -> list[EncoderOutput]:
        if any(image.data.startswith(b"bad") for image in images):
            raise RuntimeError("a bad image")
        with open(os.environ["SCRIPTED_LOG"], "ab") as log:
            log.writelines(image.data + b"\n" for image in images)
        if any(image.data.startswith(b"slow") for image in images):
            time.sleep(0.3)
        arrays = [embedding_of(image.data, image.tokens) for image in images]
        return [EncoderOutput("float32", list(array.shape), array.data) for array in arrays]


def main(child: Child) -> None:
    run_visual(child, 0, lambda config: ScriptedEncoder())


if __name__ == "__main__":
    run_child("visual-0", main)
