"""Threads in which llguidance may recurse, and does not keep others waiting."""

from __future__ import annotations

import contextlib
import os
import threading
from concurrent.futures import ThreadPoolExecutor

_STACK_BYTES = 128 << 20
"""The library recurses. Only what is used of a stack takes memory."""
_NICENESS = 15
"""Of threads that compile: beside a thread of the usual niceness on the same core they get 3 % of it. Where a model computes on all
cores, a round waits for its slowest thread, and would take twice as long while a schema is compiled."""


def deep_threads(count: int, name: str, nice: bool = False) -> ThreadPoolExecutor:
    """Threads whose stack is deep enough for any constraint that is within the limits. nice: they leave the processor to others.
    Such a thread should hold the GIL for moments only: who waits for it then waits for others as well."""
    pool = ThreadPoolExecutor(count, thread_name_prefix=name, initializer=_be_nice if nice else None)
    started = threading.Barrier(count)
    before = threading.stack_size(_STACK_BYTES)
    try:
        list(pool.map(lambda _: started.wait(), range(count)))
    finally:
        threading.stack_size(before)
    return pool


def _be_nice() -> None:
    thread = threading.get_native_id()
    with contextlib.suppress(OSError):  # a sandbox may forbid it
        os.setpriority(os.PRIO_PROCESS, thread, max(_NICENESS, os.getpriority(os.PRIO_PROCESS, thread)))
