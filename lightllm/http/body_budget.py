"""How many bytes of large request bodies a worker holds at a time: what has come of them, until nothing refers to the
parsed body any more."""

from __future__ import annotations

import ctypes
import weakref

from lightllm.errors import ServerOverloaded

BODIES_AT_ONCE = 4
"""The budget, in bodies of the largest size."""
FREE_BYTES = 64 * 1024
"""Of each body: they count for nothing, so that large bodies never keep ordinary requests out."""
_RETRY_SECONDS = 2
_M_MMAP_THRESHOLD = -3
_LARGE_BLOCK = 1 << 20


class BodyBudget:
    """The budget of one worker. `largest`: bytes that one body may have."""

    def __init__(self, largest: int) -> None:
        self.largest = largest
        self.total = BODIES_AT_ONCE * largest
        self.sizes: dict[int, int] = {}
        """Bytes by lease. Each change is atomic: the garbage collector may end a lease at any time, in any thread."""

    @property
    def held(self) -> int:
        """bytes"""
        return sum(list(self.sizes.values()))


class BodyLease:
    """What one request holds of the budget."""

    def __init__(self, budget: BodyBudget) -> None:
        self._budget = budget

    def check(self, size: int) -> None:
        """Raises `ServerOverloaded` if a body of `size` bytes exceeded the budget now."""
        budget = self._budget
        if (
            size > FREE_BYTES
            and budget.held - budget.sizes.get(id(self), 0) + size - FREE_BYTES > budget.total
        ):
            raise ServerOverloaded(
                f"the large request bodies that are being read have {budget.total >> 20} MiB together, the most that "
                f"is held at a time; another one of {max(1, size >> 20)} MiB has to wait",
                retry_after=_RETRY_SECONDS,
            )

    def grow(self, size: int) -> None:
        """So much of the body has come. Raises `ServerOverloaded` beyond the budget."""
        if size > FREE_BYTES:
            self.check(size)
            self._budget.sizes[id(self)] = size - FREE_BYTES

    def end(self) -> None:
        """The body is gone."""
        self._budget.sizes.pop(id(self), None)

    def end_with(self, body: object) -> None:
        """Ends when nothing refers to `body` any more."""
        if id(self) in self._budget.sizes:
            weakref.finalize(body, self.end)


def give_back_large_blocks() -> None:
    """Lets the allocator return blocks of a mebibyte or more as soon as they are freed. By default glibc raises that limit
    with every large block that is freed, up to 32 MiB, and keeps smaller ones: a worker would stay as large as the bodies
    it once had. Elsewhere than on glibc it does nothing."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _LARGE_BLOCK)
