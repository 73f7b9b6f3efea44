"""Gives memory that loading has freed back to the system."""

from __future__ import annotations

import ctypes
from collections.abc import Callable


def _find_trim() -> Callable[[int], object]:
    try:
        return ctypes.CDLL(None).malloc_trim
    except AttributeError:  # not glibc
        return lambda pad: None


_trim = _find_trim()


def give_back_freed_memory() -> None:
    """glibc keeps freed blocks of up to 32 MiB for later: the copies that conversion and packing make of every weight would
    stay as hundreds of MiB that are not used (mallopt(3), malloc_trim(3))."""
    _trim(0)
