"""A decode round's way through the layers, replayed where it can be: see `ops/cpu/replay.py`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch

from lightllm.ops.batch import Batch
from lightllm.ops.cpu.replay import Replays, Tensors


def replayed(
    replays: Replays,
    work: Callable[[torch.Tensor, Batch], torch.Tensor],
    residual: torch.Tensor,
    batch: Batch,
) -> torch.Tensor:
    """`work(residual, batch)`, valid until the next call. Of the batch it reads slots, rotary angles, attention and KV memory."""
    angles = [tensor for pair in batch.rotary for tensor in pair]

    def work_on(inputs: Tensors) -> Tensors:
        residual, slots, *angles = inputs
        rotary = list(zip(angles[::2], angles[1::2], strict=True))
        return [work(residual, dataclasses.replace(batch, slots=slots, rotary=rotary))]

    inputs = [residual, batch.slots, *angles]
    return replays.run(work_on, inputs, batch.attention.decode_by_token(), key=id(batch.kv))[0]
