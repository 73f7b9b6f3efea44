"""Kernels that compute rows, each by itself: how they are found and called.

What such a kernel is told are int64 numbers, of which the first three are the same for all; strides are in bytes.
"""

from __future__ import annotations

import ctypes
import functools
import struct

import torch

from lightllm.ops.cpu.library import Kernel, load_kernels

NEXT, ROWS, BLOCK = range(3)
"""A counter of all threads, 0 at first; how many rows there are; how many a thread takes at a time."""
_BLOCKS_A_THREAD = 4
"""So that a thread that loses its core for a while holds up the others by a fraction of the work."""


class RowKernels:
    """One operation, a kernel for each dtype."""

    def __init__(self, name: str, length: int, at_once: int) -> None:
        """length: numbers that a kernel is told; at_once: up to so many numbers of tensors one thread is faster than several
        that must be woken first."""
        self._name, self.at_once = name, at_once
        self._call = ctypes.c_int64 * length

    def find(self, dtype: torch.dtype) -> Kernel | None:
        return _by_dtype(self._name).get(dtype)

    def run(self, kernel: Kernel, rows: int, size: int, *numbers: int) -> None:
        """size: numbers of a row; numbers: what the kernel is told behind the first three."""
        if rows * size <= self.at_once:
            kernel.at_once(self._call(0, rows, rows, *numbers))
            return
        block = -(-rows // (_BLOCKS_A_THREAD * torch.get_num_threads()))
        kernel(self._call(0, rows, block, *numbers))


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
