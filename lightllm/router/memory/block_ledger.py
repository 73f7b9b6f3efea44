"""The blocks that the radix tree holds, for those who want to know from outside: each change of the tree becomes events.

A block is `BLOCK_TOKENS` tokens of a path from the root; it is stored while the tree has all of its path up to its end. A node has
the keys of the blocks that end in it. What is out of the tree but still read is not stored: nobody finds it any more.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from lightllm.protocol.kv_events import (
    BLOCK_TOKENS,
    MEDIUM,
    AllBlocksCleared,
    BlockRemoved,
    BlockStored,
    KvEvent,
    chain_keys,
)
from lightllm.router.memory.radix_node import Node


class _Held:
    """Of one node: where it starts, tokens from the root, and the keys of the blocks that end in it."""

    __slots__ = ("keys", "start")

    def __init__(self, start: int, keys: list[int]) -> None:
        self.start = start
        self.keys = keys


class BlockLedger:
    def __init__(self, token_ids: bool = False) -> None:
        """token_ids: whether events have them."""
        self._token_ids = token_ids
        self._held: dict[Node, _Held] = {}
        self._events: list[KvEvent] = [AllBlocksCleared()]

    def take(self) -> list[KvEvent]:
        """What has happened since the last call."""
        events, self._events = self._events, []
        return events

    @property
    def has_news(self) -> bool:
        return bool(self._events)

    def everything(self, nodes: Iterable[Node]) -> list[KvEvent]:
        """All that is stored now, as events. nodes: of the tree, each before its children."""
        events: list[KvEvent] = [AllBlocksCleared()]
        for node in nodes:
            held = self._held.get(node)
            if held is not None and held.keys:
                events.append(self._stored(node, held))
        return events

    # -- what happens to the tree

    def clear(self) -> None:
        """The tree is another one, and empty."""
        self._held.clear()
        self._events.append(AllBlocksCleared())

    def added(self, node: Node) -> None:
        parent = node.parent
        assert parent is not None
        start = self._end_of(parent)
        if start is None:
            return
        held = self._held[node] = _Held(start, [])
        open_tokens = start % BLOCK_TOKENS
        if open_tokens + len(node.key) < BLOCK_TOKENS:
            return
        tokens = np.concatenate([*_last_tokens(parent, open_tokens), node.key])
        before = self._last_key(parent)
        held.keys = chain_keys(tokens.astype("<i4").tobytes(), b"" if before is None else before.to_bytes(8))
        self._events.append(self._stored(node, held))

    def split(self, upper: Node, node: Node) -> None:
        """`upper` has taken the first tokens of `node`."""
        held = self._held.get(node)
        if held is None:
            return
        middle = held.start + len(upper.key)
        count = middle // BLOCK_TOKENS - held.start // BLOCK_TOKENS
        self._held[upper] = _Held(held.start, held.keys[:count])
        held.start, held.keys = middle, held.keys[count:]

    def cut(self, node: Node) -> None:
        """It has lost tokens at its end."""
        held = self._held.get(node)
        if held is None:
            return
        count = (held.start + len(node.key)) // BLOCK_TOKENS - held.start // BLOCK_TOKENS
        self._removed(held.keys[count:])
        held.keys = held.keys[:count]

    def removed(self, node: Node) -> None:
        """It is out of the tree; of one that was so before nothing is known."""
        held = self._held.pop(node, None)
        if held is not None:
            self._removed(held.keys)

    def _removed(self, keys: list[int]) -> None:
        if not keys:
            return
        last = self._events[-1] if self._events else None
        if isinstance(last, BlockRemoved):
            last.block_hashes += keys
        else:
            self._events.append(BlockRemoved([*keys], MEDIUM))

    def _stored(self, node: Node, held: _Held) -> BlockStored:
        tokens: list[int] = []
        if self._token_ids:
            open_tokens = held.start % BLOCK_TOKENS
            assert node.parent is not None
            whole = np.concatenate([*_last_tokens(node.parent, open_tokens), node.key])
            tokens = whole[: len(held.keys) * BLOCK_TOKENS].tolist()
        parent = node.parent
        assert parent is not None
        return BlockStored([*held.keys], self._last_key(parent), tokens, BLOCK_TOKENS, None, MEDIUM)

    def _end_of(self, node: Node) -> int | None:
        """Tokens from the root; None: it is not in the tree."""
        if node.parent is None and not len(node.key):
            return 0
        held = self._held.get(node)
        return None if held is None else held.start + len(node.key)

    def _last_key(self, node: Node) -> int | None:
        """Of the last block that ends in it or above."""
        while (held := self._held.get(node)) is not None:
            if held.keys:
                return held.keys[-1]
            assert node.parent is not None
            node = node.parent
        return None


def _last_tokens(node: Node, count: int) -> list[np.ndarray]:
    """The last `count` tokens of the path that ends with `node`, in pieces."""
    pieces: list[np.ndarray] = []
    while count > 0:
        pieces.append(node.key[-count:])
        count -= len(pieces[-1])
        assert node.parent is not None
        node = node.parent
    return pieces[::-1]
