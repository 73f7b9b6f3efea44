"""What a pass over the layers calls, taken down so that it can be replayed without Python: see `replay.py`.

While a recording is on, its thread's tensors come from an `Arena`, which outlives the pass: the addresses that kernels were told hold.
Whatever cannot be replayed is refused, and named: an operation of torch that computes, or a kernel told something that is of this
pass alone.
"""

from __future__ import annotations

import ctypes
import threading
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from lightllm.ops.attention_metadata import AttentionMetadata

_aten = torch.ops.aten
_SMALLEST = 1 << 12
"""Bytes of a block."""


class RoundCall(Protocol):
    """What a kernel is told about a whole round and one layer of it."""

    call: np.ndarray
    """int64 [n]"""
    counters: np.ndarray
    """int64, zeros: of each layer's call."""
    scale: np.ndarray
    """float32, a layer's own."""


class Places(NamedTuple):
    """Where a `RoundCall` has what differs from layer to layer."""

    counters: int
    scale: int
    of_layer: tuple[int, ...]
    """All others."""


class OfRound(NamedTuple):
    """How the same call is made for another round."""

    key: Any
    """The same for layers that are told the same of a round."""
    made: RoundCall
    make: Callable[[AttentionMetadata], RoundCall]
    places: Places


class Noted(NamedTuple):
    function: int
    """Address of the kernel."""
    told: np.ndarray
    """int64 [n]"""
    alone: bool
    """One thread calls it."""
    of_round: OfRound | None
    scale: np.ndarray | None
    """With `of_round`: the layer's own."""


class Arena:
    """Memory that passes use in turn: only one is computed at a time."""

    def __init__(self) -> None:
        self._blocks: list[torch.Tensor] = []
        self._kept: Counter[int] = Counter()
        """By address of a block: tensors in it that do not make it taken."""
        self._alone = _users(torch.empty(1, dtype=torch.uint8))

    def empty(self, shape: Any, dtype: torch.dtype) -> torch.Tensor:
        """A contiguous tensor in a block that no other tensor lies in."""
        size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        wanted = max(1 << max(size - 1, 0).bit_length(), _SMALLEST)
        block = next((block for block in self._blocks if len(block) == wanted and self._is_free(block)), None)
        if block is None:
            block = torch.empty(wanted, dtype=torch.uint8)
            self._blocks.append(block)
        return block[:size].view(dtype).view(shape)

    def keep(self, tensor: torch.Tensor, more: int = 1) -> None:
        """The tensor is read behind the pass that it is of, and before the next one; -1: it was dropped."""
        self._kept[tensor.untyped_storage().data_ptr()] += more

    def _is_free(self, block: torch.Tensor) -> bool:
        return _users(block) == self._alone + self._kept[block.data_ptr()]


def _users(tensor: torch.Tensor) -> int:
    """Of its memory."""
    return torch._C._storage_Use_Count(tensor.untyped_storage()._cdata)


class Recording(TorchDispatchMode):
    """`with` it, a thread's calls of kernels are carried out and noted; without a `refusal` they are all that was done."""

    def __init__(self, arena: Arena) -> None:
        super().__init__()
        self.noted: list[Noted] = []
        self.refusal = ""
        self._arena = arena

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """False: torch's compiler is not imported for it, which takes seconds."""
        return False

    def __enter__(self) -> Recording:
        _thread.recording = self
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        _thread.recording = None
        super().__exit__(*error)

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function is _aten.empty.memory_format:
            return self._arena.empty(args[0], kwargs.get("dtype") or torch.get_default_dtype())
        if function in (_aten.new_empty.default, _aten.empty_like.default):
            like = args[0]
            if function is _aten.empty_like.default and not like.is_contiguous():
                self.refuse("memory as that of a tensor whose numbers do not lie side by side")
            shape = args[1] if function is _aten.new_empty.default else like.shape
            return self._arena.empty(shape, kwargs.get("dtype") or like.dtype)
        if not function.is_view:
            self.refuse(str(function))
        return function(*args, **kwargs)

    def refuse(self, reason: str) -> None:
        self.refusal = self.refusal or reason

    def note(self, function: int, call: Any, alone: bool, of_round: OfRound | None = None) -> None:
        """call: what the kernel is told, of memory of tensors alone; or, with `of_round`, of its `made`."""
        if of_round is not None:
            made = of_round.made
            self.noted.append(Noted(function, made.call.copy(), alone, of_round, made.scale.copy()))
        elif isinstance(call, ctypes.Array):
            self.noted.append(Noted(function, np.frombuffer(bytes(call), np.int64), alone, None, None))
        else:
            self.refuse("a kernel that is told something of one round alone")


class _Thread(threading.local):
    recording: Recording | None = None


_thread = _Thread()


def current() -> Recording | None:
    """That of this thread."""
    return _thread.recording
