"""Random weights in the real shapes, for measuring speed without a checkpoint (`--load_way dummy`)."""

from __future__ import annotations

import math
import threading
import zlib
from collections.abc import Iterable, Sequence

import torch

from lightllm.errors import InvalidModel
from lightllm.weights.source import StoredTensor
from lightllm.weights.split import Part

_BLOCK = 1 << 20
_STD = 0.02
_LARGEST = 256 << 20
_EXPONENT = 121
"""2^-6, with a bias of 127."""


class DummyWeights:
    """Tensors are runs of one block of normal numbers, from a place that depends on the name alone; norms are 1."""

    def __init__(self, dtype: torch.dtype, memory: int | None = None) -> None:
        """memory: bytes that there are for all tensors together; None: it is not known."""
        self.overruled: list[str] = []
        self._memory, self._taken = memory, 0
        self._lock = threading.Lock()
        generator = torch.Generator().manual_seed(0)
        self._block = (torch.randn(_BLOCK, generator=generator) * _STD).to(dtype)

    def names(self) -> set[str]:
        return set()

    def dtype(self) -> torch.dtype:
        return self._block.dtype

    def largest(self) -> int:
        """About that of a model of 7 billion weights: which tensors there are is not known."""
        return _LARGEST

    def nbytes(self, dtype: torch.dtype, names: Iterable[str]) -> int:
        return 0

    def release_pages(self, tensor: torch.Tensor) -> None:
        """Not shared with any other tensor."""

    def stored(self, name: str) -> StoredTensor | None:
        return None

    def read(
        self, name: str, shape: Sequence[int], parts: Sequence[Part] = (), dtype: torch.dtype | None = None
    ) -> torch.Tensor:
        block = self._block if dtype is None else self._of_another_format(name, dtype)
        shape = list(shape)
        for part in parts:
            shape[part.dim] = part.stop - part.start
        self._take(name, math.prod(shape) * block.element_size())
        tensor = torch.ones(shape, dtype=block.dtype)
        if "norm" in name or ".ln_" in name:
            return tensor
        flat = tensor.view(-1)
        offset = zlib.crc32(name.encode()) % len(block)
        position = 0
        while position < len(flat):
            count = min(len(block) - offset, len(flat) - position)
            flat[position : position + count] = block[offset : offset + count]
            position += count
            # An odd step keeps the rows of a square weight from repeating.
            offset = (offset + count + 7919) % len(block)
        return tensor

    def _of_another_format(self, name: str, dtype: torch.dtype) -> torch.Tensor:
        """The numbers' bits; of floats the numbers, which may not become NaN, and of exponents one that makes small weights."""
        if dtype.is_floating_point:
            return self._block.to(dtype)
        if name.endswith("_scales"):
            return torch.full((_BLOCK,), _EXPONENT, dtype=dtype)
        return self._block.view(dtype)

    def _take(self, name: str, nbytes: int) -> None:
        with self._lock:
            self._taken += nbytes
            if self._memory is not None and self._taken > self._memory:
                raise InvalidModel(
                    f"Random weights up to {name!r} take {self._taken >> 20} MiB, there are {self._memory >> 20} MiB.",
                    "Correct the sizes in config.json, or take more GPUs with --tp.",
                )
