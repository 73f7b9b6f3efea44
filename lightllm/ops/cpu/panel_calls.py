"""What linear layers whose weights lie in panels do alike around their kernels: rows side by side, tasks for the threads, the call."""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from lightllm.ops.cpu.library import Kernel

_AT_ONCE = 1 << 18
"""Up to so many products of two numbers one thread is faster than several that must be woken first."""
_TASKS_A_THREAD = 4
_ROWS_A_TASK = 6
"""With fewer rows a task would read a panel for too few products."""


class Shares(NamedTuple):
    """How a layer's work is shared: a task is a panel and one of `parts` of the rows."""

    alone: bool
    """One thread does all of it."""
    threads: int
    parts: int


def shares(rows: int, products: int, panels: int) -> Shares:
    """products: of two numbers, of all rows."""
    if products <= _AT_ONCE:
        return Shares(True, 1, 1)
    threads = torch.get_num_threads()
    return Shares(False, threads, min(max(_TASKS_A_THREAD * threads // panels, 1), -(-rows // _ROWS_A_TASK)))


def with_stride(x: torch.Tensor) -> tuple[torch.Tensor, int]:
    """x [rows, inputs] with the inputs of a row side by side, copied where they are not, and how many numbers one row is behind
    the other."""
    stride, last = x.stride()
    return (x, stride) if last == 1 else (x.contiguous(), x.shape[1])


def padded_bias(bias: torch.Tensor | None, panels: int, width: int) -> torch.Tensor | None:
    """float32 [panels * width], 0 behind the last output; None where there is none."""
    if bias is None:
        return None
    padded = torch.zeros(panels * width)
    padded[: len(bias)] = bias
    return padded


def caller(length: int) -> Callable[[tuple[int, ...]], Any]:
    """Makes what a kernel is told, `length` int64 numbers: of the given ones, behind the counter of the tasks that were taken."""
    memory, pack_into = ctypes.c_char * (8 * length), struct.Struct(f"{length}q").pack_into

    def told(numbers: tuple[int, ...]) -> Any:
        call = memory()
        pack_into(call, 0, 0, *numbers)
        return call

    return told


def run(kernel: Kernel, call: Any, alone: bool) -> None:
    if alone:
        kernel.at_once(call)
    else:
        kernel(call)
