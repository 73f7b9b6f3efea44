"""A weight that is still where it came from: packing fetches a run of its rows at a time and never holds it twice."""

from __future__ import annotations

import contextlib
import math
import mmap
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import TypeVar

import torch

_CHUNK_BYTES = 4 << 20
"""Copied at once: so much of a file's memory is mapped, and so much is rounded on its way, at any time."""

_Packed = TypeVar("_Packed")


class WeightRows:
    """Tensors [.., *rest] one below the other, seen as one weight [rows, *rest] of `dtype` on `device`.

    The tensors may be views of a mapped file, of any strides and of another dtype; what is fetched is rounded to `dtype`.
    """

    def __init__(
        self,
        parts: Sequence[torch.Tensor],
        dtype: torch.dtype,
        device: torch.device,
        release_pages: Callable[[torch.Tensor], None] = lambda rows: None,
        budget: Callable[[int], AbstractContextManager[None]] = lambda nbytes: contextlib.nullcontext(),
        budget_bytes: int = sys.maxsize,
    ) -> None:
        """release_pages: is told which rows have been fetched; budget: is entered for as long as a copy of so many bytes lives;
        budget_bytes: how many there are for all copies."""
        self.parts, self.dtype, self.device = list(parts), dtype, device
        self._release_pages, self._budget, self._budget_bytes = release_pages, budget, budget_bytes

    @property
    def shape(self) -> torch.Size:
        first = self.parts[0].shape
        return torch.Size((sum(part.shape[0] for part in self.parts), *first[1:]))

    def view(self, *parts: torch.Tensor) -> WeightRows:
        """Other views of what these are views of, or of what was made from it."""
        return WeightRows(
            parts, self.dtype, self.device, self._release_pages, self._budget, self._budget_bytes
        )

    @property
    def piece_bytes(self) -> int:
        """The largest piece worth packing at once: it leaves room for a smaller weight of another thread. Where tensors are
        small, 16 MiB."""
        return max(4 * _CHUNK_BYTES, self._budget_bytes * 3 // 4 - 2 * _CHUNK_BYTES)

    def load(self, dtype: torch.dtype | None = None) -> torch.Tensor:
        """A new tensor of all rows on `device`; dtype: widened to it after rounding, None: `self.dtype`."""
        whole = torch.empty(self.shape, dtype=dtype or self.dtype, device=self.device)
        self.copy_to(whole)
        return whole

    def on_device(self) -> torch.Tensor:
        """The same for a device other than the CPU; what is there already is not copied."""
        part = self.parts[0]
        there = len(self.parts) == 1 and part.device == self.device and part.dtype == self.dtype
        return part if there else self.load()

    def copy_to(self, out: torch.Tensor, first: int = 0) -> None:
        """Writes rows [first, first + len(out)) to `out`, which may be on any device and of a wider dtype."""
        row_bytes = max(1, math.prod(self.shape[1:]) * self.parts[0].element_size())
        step = max(1, _CHUNK_BYTES // row_bytes)
        last, above = first + len(out), 0
        rounded = None
        for part in self.parts:
            begin, end = max(first, above), min(last, above + len(part))
            for start in range(begin, end, step):
                stop = min(start + step, end)
                rows = part[start - above : stop - above]
                place = out[start - first : stop - first]
                if out.dtype == self.dtype or part.dtype == self.dtype:
                    place.copy_(rows)
                else:
                    # One for all chunks: malloc makes a heap of many.
                    rounded = (
                        part.new_empty((step, *part.shape[1:]), dtype=self.dtype)
                        if rounded is None
                        else rounded
                    )
                    place.copy_(rounded[: len(rows)].copy_(rows))
                self._release_pages(rows)
            above += len(part)

    def pack(
        self, rows: int, dtype: torch.dtype, form: Callable[[torch.Tensor, int], _Packed]
    ) -> list[_Packed]:
        """form(piece, its first row) of every piece of `rows` rows, the last may be shorter, in order.

        piece: contiguous, of `dtype`, on the CPU, and overwritten afterwards.
        """
        total, rest = self.shape[0], self.shape[1:]
        rows = min(rows, total)
        nbytes = rows * math.prod(rest) * dtype.itemsize
        with self._budget(nbytes + 2 * _CHUNK_BYTES):
            # malloc would keep what is smaller than 32 MiB for later, in each thread; see mallopt(3).
            memory = mmap.mmap(-1, max(1, nbytes), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            buffer = torch.frombuffer(memory, dtype=dtype, count=nbytes // dtype.itemsize).view(rows, *rest)
            packed = []
            for first in range(0, total, rows):
                piece = buffer[: min(rows, total - first)]
                self.copy_to(piece, first)
                packed.append(form(piece, first))
            return packed


def as_rows(weight: torch.Tensor | WeightRows) -> WeightRows:
    return weight if isinstance(weight, WeightRows) else WeightRows([weight], weight.dtype, weight.device)
