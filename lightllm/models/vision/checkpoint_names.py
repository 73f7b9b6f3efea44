"""One name for each tensor of a vision encoder, whatever a published checkpoint calls it, and no tensor of anything else."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

import torch

from lightllm.weights.source import StoredTensor, TensorSource
from lightllm.weights.split import Part

Renaming = tuple[tuple[str, str], ...]
"""(regular expression that a name begins with, what takes its place, in which \\g<group> stands for a group's text); the first that fits counts."""


class RenamedTensors:
    """A `TensorSource` of those tensors of some checkpoints that their renamings know."""

    def __init__(self, sources: Sequence[tuple[TensorSource, Renaming]]) -> None:
        """Where two sources hold a tensor, the first one's is read."""
        self._pairs, self._main = list(sources), sources[0][0]
        self._sources = [source for source, _ in sources]
        self._found: dict[str, tuple[TensorSource, str]] = {}
        for source, renaming in sources:
            for spelling in source.names():
                if (name := renamed(spelling, renaming)) is not None:
                    self._found.setdefault(name, (source, spelling))
        self.overruled = [line for source in self._sources for line in source.overruled]

    def beside(self, source: TensorSource, renaming: Renaming) -> RenamedTensors:
        """These, and what another source has."""
        return RenamedTensors([*self._pairs, (source, renaming)])

    def names(self) -> set[str]:
        return set(self._found)

    def dtype(self) -> torch.dtype:
        return self._main.dtype()

    def stored(self, name: str) -> StoredTensor | None:
        source, spelling = self._found.get(name, (self._main, name))
        return source.stored(spelling)

    def read(
        self, name: str, shape: Sequence[int], parts: Sequence[Part] = (), dtype: torch.dtype | None = None
    ) -> torch.Tensor:
        source, spelling = self._found.get(name, (self._main, name))
        return source.read(spelling, shape, parts, dtype)

    def largest(self) -> int:
        return max(source.largest() for source in self._sources)

    def nbytes(self, dtype: torch.dtype, names: Iterable[str]) -> int:
        found = [self._found[name] for name in names]
        return sum(
            source.nbytes(dtype, [spelling for owner, spelling in found if owner is source])
            for source in self._sources
        )

    def release_pages(self, tensor: torch.Tensor) -> None:
        for source in self._sources:
            source.release_pages(tensor)


def renamed(spelling: str, renaming: Renaming) -> str | None:
    """None: the tensor is of another part of the model."""
    for pattern, name in renaming:
        if match := re.match(pattern, spelling):
            return match.expand(name) + spelling[match.end() :]
    return None
