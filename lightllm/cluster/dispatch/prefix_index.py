"""Which blocks of prompts each worker was sent: what it is thought to have in its prefix cache.

A block's key stands for all blocks before it, so the tree of prefixes is one table: key -> the workers that have it. A worker
forgets what it was sent longest ago when it holds more than its KV memory would.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence

from lightllm.cluster.ask import BLOCK_TOKENS

DEFAULT_BLOCKS = 4096
"""Of a worker that does not say how much its KV memory holds."""


def leading(blocks: Sequence[int], has: Callable[[int], object]) -> int:
    """How many leading blocks `has` holds for, where it holds for none behind one that it does not hold for."""
    low, high = 0, len(blocks)
    while low < high:
        middle = (low + high + 1) // 2
        if has(blocks[middle - 1]):
            low = middle
        else:
            high = middle - 1
    return low


class PrefixIndex:
    def __init__(self) -> None:
        self._holders: dict[int, set[str]] = {}
        self._blocks: dict[str, OrderedDict[int, None]] = {}
        """Of each worker, the longest unused first."""

    def __len__(self) -> int:
        """Different blocks."""
        return len(self._holders)

    def match(self, blocks: Sequence[int]) -> dict[str, int]:
        """How many leading blocks each worker has; those that have none are left out.

        Who has a block has all before it (of one prompt the end is forgotten first), so the holders of a block are among
        those of the one before it: from the end, only where there are more of them somebody is met for the first time.
        """
        depths: dict[str, int] = {}
        holders_of = self._holders.get
        for depth in range(self._deepest(blocks), 0, -1):
            holders = holders_of(blocks[depth - 1])
            if holders and len(holders) > len(depths):
                for worker in holders:
                    if worker not in depths:
                        depths[worker] = depth
        return depths

    def depth(self, worker: str, blocks: Sequence[int]) -> int:
        """How many leading blocks this one has."""
        own = self._blocks.get(worker)
        return leading(blocks, own.__contains__) if own else 0

    def _deepest(self, blocks: Sequence[int]) -> int:
        """How many leading blocks anybody has."""
        return leading(blocks, self._holders.__contains__)

    def insert(self, worker: str, blocks: Sequence[int], kv_tokens: int = 0) -> None:
        """kv_tokens: that the worker's memory holds; 0: unknown."""
        own = self._blocks.setdefault(worker, OrderedDict())
        # from the end: of one prompt the end is forgotten first
        for block in reversed(blocks):
            if block in own:
                own.move_to_end(block)
            else:
                own[block] = None
                self._holders.setdefault(block, set()).add(worker)
        most = kv_tokens // BLOCK_TOKENS if kv_tokens else DEFAULT_BLOCKS
        while len(own) > most:
            block, _ = own.popitem(last=False)
            self._let_go(worker, block)

    def forget(self, worker: str) -> None:
        for block in self._blocks.pop(worker, ()):
            self._let_go(worker, block)

    def _let_go(self, worker: str, block: int) -> None:
        holders = self._holders[block]
        holders.discard(worker)
        if not holders:
            del self._holders[block]
