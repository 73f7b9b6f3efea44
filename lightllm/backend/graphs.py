"""Decode rounds as captured graphs: hundreds of kernel launches become one.

A graph is captured for each of some batch sizes; a round is padded to the next larger one with entries of the hold row,
which read and write the hold slot alone. A graph reads its inputs from the buffers of `RoundInputs` and leaves its logits
in a buffer that all sizes share; sampling happens outside, so that what it needs may arrive late.
"""

from __future__ import annotations

import bisect
import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from tqdm import tqdm

from lightllm.backend.device import Device
from lightllm.backend.round_inputs import RoundInputs
from lightllm.ops.batch import Batch

if TYPE_CHECKING:
    from lightllm.models.base import TpPartBaseModel


def graph_sizes(largest: int, split: int, step: int) -> list[int]:
    """Every batch size up to `split`, then every `step`-th, and `largest` itself; ascending."""
    dense = list(range(1, min(split, largest) + 1))
    return dense + [*range(split + step, largest, step), *([largest] if largest > split else [])]


class DecodeGraphs:
    def __init__(
        self, device: Device, model: "TpPartBaseModel", inputs: RoundInputs, sizes: list[int]
    ) -> None:
        """sizes: ascending, at least one."""
        self._device = device
        self._model = model
        self._inputs = inputs
        self._sizes = sizes
        self._replays: dict[int, Callable[[], None]] = {}
        self._logits = torch.empty(
            (sizes[-1], model.config.vocab_size), dtype=torch.float32, device=device.torch_device
        )

    def capture(self, progress: Callable[[str], None], show_bar: bool) -> None:
        """Largest size first, so that the smaller ones find room in its memory."""
        with tqdm(total=len(self._sizes), desc="Capturing graphs", unit="size", disable=not show_bar) as bar:
            for number, size in enumerate(reversed(self._sizes), start=1):
                progress(f"capturing decode graphs: {number} of {len(self._sizes)}")
                self._replays[size] = self._capture(size)
                bar.update()

    def size_for(self, entries: int) -> int | None:
        """The smallest captured size that holds so many entries; None if there is none."""
        place = bisect.bisect_left(self._sizes, entries)
        return self._sizes[place] if place < len(self._sizes) else None

    def run(self, size: int) -> torch.Tensor:
        """Computes the round that was sent with `RoundInputs.decode(round, size)`. Returns logits float32 [size, V], valid
        until the next run."""
        self._replays[size]()
        return self._logits[:size]

    def _capture(self, size: int) -> Callable[[], None]:
        batch = self._inputs.decode_batch(size)
        self._inputs.fill_hold(size)
        self._compute(batch, size)  # kernels are compiled and loaded outside of the capture
        with _no_garbage_collected():
            replay = self._device.capture(lambda: self._compute(batch, size))
        # What the layers shared lies in the pool, and the next graph may have it: no two of them run at once.
        batch.attention, batch.rotary = batch.attention.anew(), ()
        return replay

    def _compute(self, batch: Batch, size: int) -> None:
        self._inputs.complete(batch)
        self._logits[:size].copy_(self._model.forward(batch))


@contextmanager
def _no_garbage_collected() -> Iterator[None]:
    """Freeing what an earlier backend has left (graphs, pinned memory) may call CUDA in ways that break a capture."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
