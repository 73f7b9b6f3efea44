"""Reads the tensors of a model exactly once each, and shows how far it has come."""

from __future__ import annotations

import dataclasses
import re
import sys
import threading
from collections.abc import Callable, Sequence

import torch
from tqdm import tqdm

from lightllm.errors import InvalidModel
from lightllm.ops.weight_rows import WeightRows
from lightllm.weights.memory_budget import MemoryBudget
from lightllm.weights.source import StoredTensor, TensorSource
from lightllm.weights.split import Part

_BUFFERS = re.compile(r"rotary_emb\.inv_freq$|rotary_pos_emb\.inv_freq$|\.attn\.bias$|\.masked_bias$")
"""Constants that old checkpoints carry along: recomputed, never read."""

_COMPARED_BYTES = 4 << 20
"""Of two tensors that are compared, what is in memory at once."""


class WeightReader:
    """Thread-safe. `finish` checks that nothing was left unread."""

    def __init__(
        self,
        source: TensorSource,
        progress: Callable[[str], None] = lambda text: None,
        show_bar: bool = False,
        name_of: Callable[[str], str | None] = lambda spelling: spelling,
    ) -> None:
        """name_of: from a tensor's name in the checkpoint to the one that it is read under; None: it is of another model."""
        self.source = source
        self.release_pages = source.release_pages
        """Is told what of a tensor has been copied."""
        self.budget = MemoryBudget(source.largest())
        """Of copies: loading holds no more than one tensor beside what it keeps."""
        names = {spelling: name_of(spelling) for spelling in source.names() if not _BUFFERS.search(spelling)}
        self._spellings = {name: spelling for spelling, name in names.items() if name is not None}
        self._modules = {
            name.rpartition(".")[0]: spelling.rpartition(".")[0] for name, spelling in self._spellings.items()
        }
        self._present = set(self._spellings)
        self._read: set[str] = set()
        self._reads: set[tuple[str | Part, ...]] = set()
        self._lock = threading.Lock()
        self._progress, self._percent = progress, -1
        self._bar = tqdm(
            total=len(self._present) or None,
            desc="weights",
            unit="tensor",
            disable=not show_bar,
            file=sys.stderr,
        )

    @property
    def is_empty(self) -> bool:
        """Weights are random: any tensor can be read, and none is there."""
        return not self._spellings

    def has(self, name: str) -> bool:
        """Whether the checkpoint holds it; random weights hold nothing and can be read under any name."""
        return name in self._present

    def has_under(self, prefix: str, besides: str) -> bool:
        """Whether it holds a tensor whose name begins so, beside one."""
        return any(name.startswith(prefix) and name != besides for name in self._present)

    def holds_same(self, name: str, other: str, shape: Sequence[int], dtype: torch.dtype) -> bool:
        """Whether two tensors of one shape are the same, rounded to `dtype`. Neither counts as read."""
        first, second = (self.source.read(self.spelt(spelling), shape) for spelling in (name, other))
        if first.data_ptr() == second.data_ptr() and first.dtype == second.dtype:
            return True  # one storage under two names, as torch.save keeps it
        step = max(1, _COMPARED_BYTES // max(1, first[:1].nbytes))
        for start in range(0, len(first), step):
            rows = [tensor[start : start + step] for tensor in (first, second)]
            same = torch.equal(*(part.to(dtype) for part in rows))
            for part in rows:
                self.release_pages(part)
            if not same:
                return False
        return True

    def spelt(self, name: str) -> str:
        """Its name in the checkpoint."""
        return self._spellings.get(name, name)

    def module_names(self, name: str) -> list[str]:
        """What a module is called here and in the checkpoint."""
        spellings = {self._modules.get(name, name): None, name: None}
        return list(spellings)

    def count(self, name: str, within: Sequence[Part]) -> None:
        """What lies within these parts of a tensor has been read."""
        with self._lock:
            if (name, *within) in self._reads:
                raise AssertionError(f"tensor {name} is read twice")
            self._reads.add((name, *within))
            if name in self._read:
                return  # another of a stack
            self._read.add(name)
            self._bar.update()
            percent = 100 * len(self._read) // len(self._present) if self._present else -1
            if percent // 5 > self._percent // 5:
                self._percent = percent
                self._progress(f"weights {percent} %")

    def ignore(self, name: str) -> None:
        """The checkpoint may hold this tensor without need."""
        self._present.discard(name)

    def ignore_under(self, prefix: str) -> None:
        """The same for all tensors whose names begin with `prefix`."""
        self._present = {name for name in self._present if not name.startswith(prefix)}

    def finish(self) -> None:
        """Raises `InvalidModel` if the checkpoint holds tensors that the model has no place for."""
        self._bar.close()
        left = sorted(self._present - self._read)
        if left:
            more = f" and {len(left) - 5} more" if len(left) > 5 else ""
            raise InvalidModel(
                f"The checkpoint holds tensors that this architecture has no place for: {', '.join(left[:5])}{more}.",
                "config.json and the weights do not belong together, or this variant is not supported yet.",
            )


@dataclasses.dataclass(frozen=True)
class ModuleTensors:
    """The tensors of one module of a model, whose names begin with its prefix, for the device that computes with them."""

    reader: WeightReader
    dtype: torch.dtype
    """What the model's dense weights are rounded to."""
    device: torch.device
    prefix: str = ""

    def at(self, name: str) -> ModuleTensors:
        """Those of the module `name` inside this one."""
        return dataclasses.replace(self, prefix=f"{self.prefix}{name}.")

    def has(self, name: str) -> bool:
        return self.reader.has(self.prefix + name)

    def stored(self, name: str) -> StoredTensor | None:
        """See `TensorSource.stored`."""
        return self.reader.source.stored(self.reader.spelt(self.prefix + name))

    def module_names(self, name: str) -> list[str]:
        """Of the module `name` in this one: what this project calls it, and what the checkpoint does."""
        return self.reader.module_names(self.prefix + name)

    def read(
        self,
        name: str,
        shape: Sequence[int],
        parts: Sequence[Part] = (),
        within: Sequence[Part] = (),
        dtype: torch.dtype | None = None,
    ) -> list[torch.Tensor]:
        """Parts of the tensor `name`, or all of it, where they lie in the checkpoint; it has `shape` there.

        within: parts of other dimensions, of which alone the rest is taken; dtype: see `TensorSource.read`. The same
        within a tensor is read once.
        """
        reader, name = self.reader, self.prefix + name
        tensors = []
        for part in parts or (None,):
            ranges = [*within] if part is None else [*within, part._replace(step=1)]
            tensor = reader.source.read(reader.spelt(name), shape, ranges, dtype)
            if part is not None and part.step != 1:
                tensor = part._replace(start=0, stop=tensor.shape[part.dim]).of(tensor)
            tensors.append(tensor)
        reader.count(name, within)
        return tensors

    def rows(self, parts: Sequence[torch.Tensor], dtype: torch.dtype | None = None) -> WeightRows:
        """What was read, or views of it, one below the other; to be rounded to `dtype`, None: the model's."""
        reader = self.reader
        return WeightRows(
            parts, dtype or self.dtype, self.device, reader.release_pages, reader.budget,
            budget_bytes=reader.budget.limit,
        )  # fmt: skip
