"""oneDNN's and ideep's caches of primitives: one entry for each shape of matrix product, which keeps its compiled code.

Prompts have any length, so shapes never end: with the libraries' own bounds (1,024 entries each) a Model Backend would
grow by a gigabyte over its first thousands of requests. Both read their bound from the environment at first use.
"""

from __future__ import annotations

import os
from collections.abc import MutableMapping

ENTRIES = 320
"""As many as rounds of up to 512 tokens have shapes (56 numbers of rows, `ops.linear.computed_rows`, with five weights or so): then
none is made twice. Making and dropping entries leaves holes: a heap grew by 170 MB in 16,000 requests with 128 entries and numbers
of rows as they came, by 82 with 128 and by 56 in 12,000 with 320 where they are rounded (bf16, AMX)."""
SOME_ENTRIES = 128
"""With less than `_MUCH_MEMORY`: enough for decode batches of a dozen sizes, which come again and again. A larger batch
computes longer than the entry takes to make (0.1 to 0.5 ms)."""
FEW_ENTRIES = 16
"""On a machine or in a container with less than `_LITTLE_MEMORY`."""
ENTRY_BYTES = 5 << 18
"""1.25 MiB: measured 1.2 MiB for each shape that both caches keep (fp32, AVX2)."""
_MUCH_MEMORY, _LITTLE_MEMORY = 8 << 30, 1 << 30
_VARIABLES = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")
_OURS = "LIGHTLLM_SHAPE_CACHES"
"""Which process set the variables itself, and to what: its children have them too, and another share of the memory."""


def bound_shape_caches(available: int, environ: MutableMapping[str, str] = os.environ) -> int:
    """Bounds both caches of this process, before its first matrix product; a bound that somebody gave in the environment wins,
    and so does this process's first one, which the libraries have read.

    available: bytes of memory. Returns the bytes that the caches may come to.
    """
    if available >= _MUCH_MEMORY:
        entries = ENTRIES
    else:
        entries = SOME_ENTRIES if available >= _LITTLE_MEMORY else FEW_ENTRIES
    setter, _, inherited = environ.get(_OURS, "").partition(":")
    if inherited and setter != str(os.getpid()):
        for name in _VARIABLES:
            if environ.get(name) == inherited:
                del environ[name]
        inherited = ""
    if not inherited:
        environ[_OURS] = f"{os.getpid()}:{entries}"
    for name in _VARIABLES:
        environ.setdefault(name, str(entries))
    return max(_entries_of(environ[name], entries) for name in _VARIABLES) * ENTRY_BYTES


def _entries_of(text: str, otherwise: int) -> int:
    return int(text) if text.isdecimal() else otherwise
