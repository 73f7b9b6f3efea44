"""Out of memory: how it is recognised, and what a user is told when it ends the start."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from lightllm.errors import DeviceError


def is_out_of_memory(error: BaseException) -> bool:
    """torch has its own type for GPUs and a plain RuntimeError for the CPU allocator; this works without torch."""
    torch = sys.modules.get("torch")
    kinds = (MemoryError, torch.OutOfMemoryError) if torch is not None else (MemoryError,)
    return isinstance(error, kinds) or "can't allocate memory" in str(error)


@contextmanager
def explained(what: str, remedy: str, memory: Callable[[], tuple[int, int]]) -> Iterator[None]:
    """Around a part of the start: out of memory becomes a `DeviceError` with the numbers and the options to change.

    what: was being done, "loading weights"; memory: free and total bytes of the device.
    """
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        free, total = memory()
        first_line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise DeviceError(
            f"Out of memory while {what}: {free / 2**30:.2f} of {total / 2**30:.2f} GiB are free. {first_line}",
            remedy,
        ) from error
