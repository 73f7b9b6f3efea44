"""Which blocks of prompts each worker was sent: what it is thought to have in its prefix cache.

A block's key stands for all blocks before it, so the tree of prefixes is one table: key -> the workers that have it. A worker
forgets what it was sent longest ago when it holds more than its KV memory would.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence

from lightllm.cluster.ask import BLOCK_TOKENS

DEFAULT_BLOCKS = 4096
"""Of a worker that does not say how much its KV memory holds."""


class PrefixIndex:
    def __init__(self) -> None:
        self._holders: dict[int, set[str]] = {}
        self._blocks: dict[str, OrderedDict[int, None]] = {}
        """Of each worker, the longest unused first."""

    def __len__(self) -> int:
        """Different blocks."""
        return len(self._holders)

    def match(self, blocks: Sequence[int], workers: Iterable[str]) -> dict[str, int]:
        """How many leading blocks each of these workers has; those that have none are left out."""
        depths: dict[str, int] = {}
        left = set(workers)
        for depth, block in enumerate(blocks):
            holders = self._holders.get(block)
            still = left & holders if holders else set()
            if len(still) < len(left):
                for worker in left - still:
                    if depth:
                        depths[worker] = depth
            left = still
            if not left:
                return depths
        for worker in left:
            depths[worker] = len(blocks)
        return depths

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
