"""Where tensors come from: what a checkpoint and random weights have in common."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch

from lightllm.weights.split import Part


class TensorSource(Protocol):
    """Thread-safe: layers are read in parallel."""

    overruled: list[str]
    """A line for each thing that two files, or an index and a file, say differently."""

    def names(self) -> set[str]:
        """All tensors there are; empty where any name can be read."""

    def dtype(self) -> torch.dtype:
        """The dtype of the first floating tensor."""

    def read(self, name: str, shape: Sequence[int], part: Part | None) -> torch.Tensor:
        """The tensor, or one part of it, on the CPU; possibly a read-only view of the file.

        shape: of the whole tensor. Raises `InvalidModel` if it is missing or has another shape.
        """

    def largest(self) -> int:
        """Bytes of the largest tensor."""

    def elements(self) -> int:
        """Of all tensors together; 0 where any name can be read."""

    def release_pages(self, tensor: torch.Tensor) -> None:
        """What `read` returned, or a view of it, has been copied: it need not stay in memory, though it may be read again."""
