"""Kernels that compute rows, each by itself: how they are found and called.

What they are told (`calls/`) is written into new memory for each call, by `struct`: an array of `ctypes` takes three times as
long to fill.
"""

from __future__ import annotations

import ctypes
import functools
import struct

import torch

from lightllm.ops.cpu.library import Kernel, load_kernels

_BLOCKS_A_THREAD = 4
"""So that a thread that loses its core for a while holds up the others by a fraction of the work."""


class RowKernels:
    """One operation, a kernel for each dtype."""

    def __init__(self, name: str, length: int, at_once: int) -> None:
        """length: numbers that a kernel is told; at_once: up to so many numbers of tensors one thread is faster than several
        that must be woken first."""
        self._name, self.at_once = name, at_once
        self._memory, self._pack_into = ctypes.c_char * (8 * length), struct.Struct(f"{length}q").pack_into

    def find(self, dtype: torch.dtype) -> Kernel | None:
        return _by_dtype(self._name).get(dtype)

    def run(self, kernel: Kernel, rows: int, size: int, *numbers: int) -> None:
        """size: numbers of a row; numbers: what the kernel is told behind the first three."""
        call = self._memory()
        if rows * size <= self.at_once:
            self._pack_into(call, 0, 0, rows, rows, *numbers)
            kernel.at_once(call)
            return
        block = -(-rows // (_BLOCKS_A_THREAD * torch.get_num_threads()))
        self._pack_into(call, 0, 0, rows, block, *numbers)
        kernel(call)


@functools.cache
def _by_dtype(name: str) -> dict[torch.dtype, Kernel]:
    kernels = load_kernels()
    names = {dtype: f"{name}_{str(dtype).removeprefix('torch.')}" for dtype in DTYPES}
    return {dtype: kernels[key] for dtype, key in names.items() if key in kernels}


DTYPES = (torch.bfloat16, torch.float16, torch.float32)


@functools.cache
def float_bits(value: float) -> int:
    """A number that is none of a tensor, as a kernel is told it."""
    return struct.unpack("<i", struct.pack("<f", value))[0]
