"""What becomes of memory that was freed: given back to the system after loading, kept for the next round while serving."""

from __future__ import annotations

import ctypes
from collections.abc import Callable

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
"""Of glibc's `malloc.h`."""


def _of_glibc(name: str) -> Callable[..., object]:
    try:
        return getattr(ctypes.CDLL(None), name)
    except AttributeError:  # another C library
        return lambda *arguments: None


_trim, _mallopt = _of_glibc("malloc_trim"), _of_glibc("mallopt")


def give_back_freed_memory() -> None:
    """glibc keeps freed blocks of up to 32 MiB for later: the copies that conversion and packing make of every weight would
    stay as hundreds of MiB that are not used (mallopt(3), malloc_trim(3))."""
    _trim(0)


def keep_freed_memory() -> None:
    """What a round has freed stays this process's for the next one. glibc gives large blocks back at once, and the system fills
    each of their pages with zeros again when it is next touched: up to a fifth of the time of a prefill of 4096 tokens."""
    _mallopt(_M_MMAP_MAX, 0)
    _mallopt(_M_TRIM_THRESHOLD, -1)
