"""Where tensors come from: what a checkpoint and random weights have in common."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple, Protocol

import torch

from lightllm.weights.split import Part


class StoredTensor(NamedTuple):
    shape: tuple[int, ...]
    dtype: torch.dtype


class TensorSource(Protocol):
    """Thread-safe: layers are read in parallel."""

    overruled: list[str]
    """A line for each thing that two files, or an index and a file, say differently."""

    def names(self) -> set[str]:
        """All tensors there are; empty where any name can be read."""

    def dtype(self) -> torch.dtype:
        """The dtype of the first floating tensor."""

    def stored(self, name: str) -> StoredTensor | None:
        """How a tensor lies there; None: not at all, or in whatever way it is asked for."""

    def read(
        self, name: str, shape: Sequence[int], parts: Sequence[Part] = (), dtype: torch.dtype | None = None
    ) -> torch.Tensor:
        """The tensor, or what lies in all of some parts of it, on the CPU; possibly a read-only view of the file.

        shape: of the whole tensor; parts: of different dimensions, of step 1; dtype: that it must have, None: any of a
        dense weight. Raises `InvalidModel` if it is missing or is otherwise.
        """

    def largest(self) -> int:
        """Bytes of the largest tensor."""

    def nbytes(self, dtype: torch.dtype, names: Iterable[str]) -> int:
        """Of these tensors together, dense ones in `dtype` and others as they are."""

    def release_pages(self, tensor: torch.Tensor) -> None:
        """What `read` returned, or a view of it, has been copied: it need not stay in memory, though it may be read again."""
