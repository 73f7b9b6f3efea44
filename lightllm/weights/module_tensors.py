"""The tensors of one module of a model: those whose names begin with its prefix, for the device that computes with them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch

from lightllm.ops.weight_rows import WeightRows
from lightllm.weights.reader import WeightReader
from lightllm.weights.split import Part


@dataclasses.dataclass(frozen=True)
class ModuleTensors:
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

    def read(
        self,
        name: str,
        shape: Sequence[int],
        parts: Sequence[Part] = (),
        within: Sequence[Part] = (),
        dtype: torch.dtype | None = None,
    ) -> list[torch.Tensor]:
        """See `WeightReader.read`."""
        return self.reader.read(self.prefix + name, shape, parts, within, dtype)

    def rows(self, parts: Sequence[torch.Tensor], dtype: torch.dtype | None = None) -> WeightRows:
        """What was read, or views of it, one below the other; to be rounded to `dtype`, None: the model's."""
        reader = self.reader
        return WeightRows(
            parts, dtype or self.dtype, self.device, reader.release_pages, reader.budget,
            budget_bytes=reader.budget.limit,
        )  # fmt: skip
