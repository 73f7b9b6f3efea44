"""What vision encoders take of the memory that they share with the language model.

A Visual Server writes it down once its encoder is loaded; a Model Backend waits for that before it sizes its KV memory, so that
weights are in use by then and only the rest is an estimate.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path

import msgspec

from lightllm.errors import StartupError
from lightllm.ipc.runtime_dir import RuntimeDir
from lightllm.ipc.whole_files import write_whole

_POLL_SECONDS = 0.02


class EncoderMemory(msgspec.Struct, frozen=True):
    weights: int = 0
    """Bytes that are in use."""
    activations: int = 0
    """Bytes that encoding takes beyond them: an estimate for the largest images."""


def write_encoder_memory(runtime: RuntimeDir, rank: int, memory: EncoderMemory) -> None:
    """rank: of the Visual Server."""
    write_whole(_path(runtime, rank), msgspec.json.encode(memory))


def wait_for_encoder_memory(runtime: RuntimeDir, ranks: Iterable[int], seconds: float) -> EncoderMemory:
    """Of these Visual Servers together. Raises `StartupError` for one that is not loaded in time."""
    deadline = time.monotonic() + seconds
    found = []
    for rank in ranks:
        while not (path := _path(runtime, rank)).exists():
            if time.monotonic() >= deadline:
                raise StartupError(f"visual-{rank} has not loaded its encoder within {seconds:.0f} s.")
            time.sleep(_POLL_SECONDS)
        found.append(msgspec.json.decode(path.read_bytes(), type=EncoderMemory))
    return EncoderMemory(sum(m.weights for m in found), sum(m.activations for m in found))


def _path(runtime: RuntimeDir, rank: int) -> Path:
    return runtime.path / f"encoder-memory-{rank}"
