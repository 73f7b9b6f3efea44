"""Threads in which llguidance may recurse."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

_STACK_BYTES = 128 << 20
"""The library recurses. Only what is used of a stack takes memory."""


def deep_threads(count: int, name: str) -> ThreadPoolExecutor:
    """Threads whose stack is deep enough for any constraint that is within the limits."""
    pool = ThreadPoolExecutor(count, thread_name_prefix=name)
    started = threading.Barrier(count)
    before = threading.stack_size(_STACK_BYTES)
    try:
        list(pool.map(lambda _: started.wait(), range(count)))
    finally:
        threading.stack_size(before)
    return pool
