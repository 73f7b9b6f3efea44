"""What a captured graph reads that was there before its capture: it must live as long as the graph is replayed."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

ASKING = ("_local_scalar_dense", "nonzero", "item", "unique", "masked_select", "is_nonzero")
"""Operations of torch that wait for the device."""


@dataclasses.dataclass
class GraphReads(TorchDispatchMode):
    """Around a capture. `launched` is told what kernels are given, which torch does not see."""

    outside: dict[int, tuple[StorageWeakRef, str]] = dataclasses.field(default_factory=dict)
    """Address -> a tensor's memory from before the capture, and what read it first."""
    asked: list[str] = dataclasses.field(default_factory=list)
    """Operations inside that wait for the device."""

    def __post_init__(self) -> None:
        super().__init__()
        self._inside: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        name = func.name()
        if any(word in name for word in ASKING):
            self.asked.append(name)
        given = self._note((args, kwargs), name)
        for tensor in _tensors(result):
            address = tensor.untyped_storage().data_ptr()
            if address not in given:  # a new tensor, maybe where an earlier one of the capture was
                self._inside.add(address)
                self.outside.pop(address, None)
        return result

    def launched(self, arguments: Any) -> None:
        self._note(arguments, "a kernel")

    def freed(self) -> list[str]:
        """What read memory that is no more."""
        return [reader for memory, reader in self.outside.values() if memory.expired()]

    def _note(self, arguments: Any, reader: str) -> set[int]:
        given = set()
        for tensor in _tensors(arguments):
            address = tensor.untyped_storage().data_ptr()
            given.add(address)
            if address and address not in self._inside and address not in self.outside:
                shape = "x".join(map(str, tensor.shape))
                memory = StorageWeakRef(tensor.untyped_storage())
                self.outside[address] = memory, f"{reader} of {tensor.dtype} [{shape}]"
        return given


def _tensors(values: Any) -> list[torch.Tensor]:
    return [
        value
        for value in tree_iter(values)
        if isinstance(value, torch.Tensor) and value.layout == torch.strided and not value.is_mkldnn
    ]
