"""Lets go of pages of mapped files that have been read: they would count as this process's memory until the end of loading."""

from __future__ import annotations

import bisect
import ctypes
import mmap
import os
from collections.abc import Iterable
from pathlib import Path

import torch

_MADV_DONTNEED = 4


class MappedFiles:
    """Where in memory some files are mapped, read only or privately and unchanged."""

    def __init__(self, paths: Iterable[Path]) -> None:
        """To be made after the files are mapped."""
        self._ranges = sorted(_mapped_ranges({os.path.realpath(path) for path in paths}))
        self._libc = ctypes.CDLL(None, use_errno=True) if self._ranges else None

    def release_pages(self, tensor: torch.Tensor) -> None:
        """Unmaps the pages under a view of one of the files, and nothing that lies elsewhere. Reading them again finds
        the same (madvise(2), MADV_DONTNEED)."""
        if self._libc is None or not tensor.numel():
            return
        start = tensor.data_ptr()
        extent = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
        stop = start + (extent + 1) * tensor.element_size()
        index = bisect.bisect_right(self._ranges, (start, 1 << 64)) - 1
        if index < 0 or stop > self._ranges[index][1]:
            return
        start -= start % mmap.PAGESIZE
        self._libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(stop - start), _MADV_DONTNEED)


def _mapped_ranges(paths: set[str]) -> Iterable[tuple[int, int]]:
    """[start, stop) of every mapping of one of the files; see proc(5), /proc/pid/maps."""
    try:
        lines = Path("/proc/self/maps").read_text().splitlines()
    except OSError:  # not Linux
        return
    for line in lines:
        addresses, *_, path = line.split(maxsplit=5)
        if path in paths:
            start, stop = (int(address, 16) for address in addresses.split("-"))
            yield start, stop
