"""The prefix cache: a radix tree from token ids to the KV slots that hold them.

A node is a piece of text with one slot a token; the way from the root to its end is a prefix that needs no computing.
A reader of a prefix locks its last node, and with it all above. What is not locked may be evicted, least recently used
leaf first, cut from its end. Time is a counter, so that the same calls always do the same.

Rounds run in order, so a prefix may be shared before its round has returned. Such a node carries the sequence number of
that round, which is never below its parent's; if the round fails, `take_back` removes all that came with it and after.

What was computed may be no numbers, which shows only when a token is sampled behind it. A node is sound once that has been,
with all above it; of a request that fails, `drop` takes what is not sound out of the tree, with all that hangs on it.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from lightllm.protocol.arrays import EMPTY_INT32
from lightllm.router.memory.block_ledger import BlockLedger
from lightllm.router.memory.radix_node import Node

CONFIRMED = -1
"""Sequence number of what no round in flight computes."""


class CachedPrefix(NamedTuple):
    """What the cache has of a context, in tokens."""

    length: int
    read: int
    """By running requests."""
    shared: int
    """By several of them."""


class RadixCache:
    """Owns the slots of its nodes. A locked node stays the end of the same prefix, however the tree is split."""

    def __init__(self) -> None:
        self.root = Node(None, EMPTY_INT32, EMPTY_INT32, CONFIRMED)
        self.root.locks = 1  # never evicted
        self.root.sound = True
        self.tokens = 0
        self.evictable = 0
        """Tokens that are not locked."""
        self._nodes = 0
        self._clock = 0
        self._pushes = 0
        self._leaves: list[tuple[int, int, Node]] = []
        """Heap of (stamp, order, node); holds every leaf that may be evicted, and stale entries."""
        self._dropped: set[Node] = set()
        """Tops of what is out of the tree, but locked or not yet evicted: no way leads there from the root."""
        self.ledger: BlockLedger | None = None
        """Is told of every change, if anybody wants to know."""

    # -- reading

    @property
    def size(self) -> int:
        """Nodes, without the root."""
        return self._nodes

    def match(self, tokens: np.ndarray, start: Node | None = None) -> tuple[Node, int]:
        """(last node, length) of the longest prefix of `tokens` below `start`; splits a node that ends beyond it."""
        node, length = start or self.root, 0
        for child, common in self._walk(tokens, node):
            length += common
            node = child if common == len(child.key) else self._split(child, common)
        return node, length

    def peek(self, tokens: np.ndarray) -> CachedPrefix:
        """The longest prefix of `tokens`, changing nothing."""
        length = read = shared = 0
        for child, common in self._walk(tokens, self.root):
            length += common
            read += common if child.locks else 0
            shared += common if child.locks > 1 else 0
        return CachedPrefix(length, read, shared)

    def unshared(self, node: Node) -> int:
        """How many tokens of the prefix that ends with `node`, which is locked, no other reader locks."""
        tokens = 0
        for part in _upwards(node):
            if part.locks > 1:
                break
            tokens += len(part.key)
        return tokens

    def path_slots(self, node: Node) -> np.ndarray:
        """int32: the slots of the prefix that ends with `node`."""
        return _slots_of(reversed(list(_upwards(node))))

    def lock(self, node: Node) -> None:
        """Keeps the prefix that ends with `node`, for one more reader."""
        self._clock += 1
        for part in _upwards(node):
            if not part.locks:
                self.evictable -= len(part.key)
            part.locks += 1
            part.stamp = self._clock

    def unlock(self, node: Node) -> None:
        self._clock += 1
        for part in _upwards(node):
            part.locks -= 1
            part.stamp = self._clock
            if not part.locks:
                self.evictable += len(part.key)
                self._push_leaf(part)

    def vouch(self, node: Node) -> None:
        """The prefix that ends with `node` is sound."""
        for part in _upwards(node):
            if part.sound:
                return
            part.sound = True

    # -- writing

    def drop(self, node: Node) -> np.ndarray:
        """Takes what is not sound of the prefix that ends with `node` out of the tree, with all that hangs on it; a reader of
        it goes on reading. int32: the slots of what is not read."""
        unsound = [part for part in _upwards(node) if not part.sound]
        if not unsound or unsound[-1] in self._dropped:
            return EMPTY_INT32
        top = unsound[-1]
        assert top.parent is not None
        del top.parent.children[int(top.key[0])]
        self._dropped.add(top)
        if self.ledger is not None:
            for part in _downwards(top):
                self.ledger.removed(part)
        unread = [part for part in _downwards(top) if not part.locks]
        for part in reversed(unread):
            self._remove(part)
        return _slots_of(unread)

    def insert(self, tokens: np.ndarray, slots: np.ndarray, start: Node | None = None) -> tuple[Node, int]:
        """Adds `tokens`, which have been computed, below `start` with their `slots`.

        Returns (their last node, how many were there already). The slots of those remain the caller's. Both arrays are
        kept: they must not change.
        """
        node, known = self.match(tokens, start)
        if known == len(tokens):
            return node, known
        leaf = self._add_leaf(node, tokens[known:], slots[known:], node.seq)
        leaf.sound = node.sound
        return leaf, known

    def append(self, node: Node, tokens: np.ndarray, slots: np.ndarray, seq: int) -> Node:
        """As `insert` of what round `seq` computes, where no child of `node` begins like `tokens`; a lock on `node` moves to
        the new node."""
        return self._add_leaf(node, tokens, slots, max(seq, node.seq), locks=1)

    def survivor(self, node: Node, seq: int) -> tuple[Node, int]:
        """(deepest part of the prefix that no round from `seq` on computes, tokens behind it)."""
        lost = 0
        while node.seq >= seq:
            lost += len(node.key)
            assert node.parent is not None
            node = node.parent
        return node, lost

    def take_back(self, seq: int) -> np.ndarray:
        """Removes what rounds from `seq` on would have computed, which is not locked any more; int32: its slots."""
        void = [node for node in self.nodes() if node.seq >= seq]
        for node in void:
            self._remove(node)
        return _slots_of(void)

    def evict(self, count: int) -> np.ndarray:
        """Removes up to `count` tokens, least recently used first; int32: their slots."""
        freed = []
        while count > 0 and self._leaves:
            stamp, _, node = heapq.heappop(self._leaves)
            if not _is_free_leaf(node) or node.stamp != stamp:
                continue
            keep = max(len(node.key) - count, 0)
            freed.append(node.slots[keep:])
            count -= len(freed[-1])
            if keep:
                self.tokens -= len(freed[-1])
                self.evictable -= len(freed[-1])
                node.key, node.slots = node.key[:keep].copy(), node.slots[:keep].copy()
                if self.ledger is not None:
                    self.ledger.cut(node)
                self._push_leaf(node)
            else:
                self._remove(node)
        return np.concatenate([EMPTY_INT32, *freed])

    # -- nodes

    def _walk(self, tokens: np.ndarray, node: Node) -> Iterator[tuple[Node, int]]:
        """(node, common length) along `tokens`; the last one may be common in part."""
        at = 0
        while at < len(tokens):
            child = node.children.get(int(tokens[at]))
            if child is None:
                return
            common = common_length(child.key, tokens[at:])
            whole = common == len(child.key)
            yield child, common
            if not whole:
                return
            at += common
            node = child

    def _split(self, node: Node, length: int) -> Node:
        """A new parent takes the first `length` tokens of `node`, which goes on being the end of the whole."""
        assert node.parent is not None
        upper = Node(node.parent, node.key[:length].copy(), node.slots[:length].copy(), node.seq)
        upper.locks, upper.stamp = node.locks, node.stamp
        upper.sound = node.sound
        upper.children[int(node.key[length])] = node
        node.parent.children[int(node.key[0])] = upper
        node.parent = upper
        node.key, node.slots = node.key[length:].copy(), node.slots[length:].copy()
        self._nodes += 1
        if self.ledger is not None:
            self.ledger.split(upper, node)
        return upper

    def _add_leaf(self, parent: Node, key: np.ndarray, slots: np.ndarray, seq: int, locks: int = 0) -> Node:
        node = Node(parent, key, slots, seq)
        node.locks = locks
        parent.children[int(key[0])] = node
        self._clock += 1
        node.stamp = self._clock
        self._nodes += 1
        self.tokens += len(key)
        if not locks:
            self.evictable += len(key)
            self._push_leaf(node)
        if self.ledger is not None:
            self.ledger.added(node)
        return node

    def _remove(self, node: Node) -> None:
        """Which nothing locks."""
        if self.ledger is not None:
            self.ledger.removed(node)
        parent, node.parent = node.parent, None
        assert parent is not None
        if node in self._dropped:
            self._dropped.remove(node)
        else:
            del parent.children[int(node.key[0])]
        self._nodes -= 1
        self.tokens -= len(node.key)
        self.evictable -= len(node.key)
        self._push_leaf(parent)

    def _push_leaf(self, node: Node) -> None:
        """Every leaf that is not locked has an entry with its stamp."""
        if not _is_free_leaf(node):
            return
        if len(self._leaves) > 64 + 2 * self._nodes:
            living = {id(n): (s, i, n) for s, i, n in self._leaves if _is_free_leaf(n) and n.stamp == s}
            self._leaves = list(living.values())
            heapq.heapify(self._leaves)
        self._pushes += 1
        heapq.heappush(self._leaves, (node.stamp, self._pushes, node))

    # -- checks

    def nodes(self) -> Iterator[Node]:
        """All but the root."""
        for top in [*self.root.children.values(), *self._dropped]:
            yield from _downwards(top)

    def all_slots(self) -> np.ndarray:
        """int32: every slot in the tree."""
        return _slots_of(self.nodes())

    def check(self, readers: Iterable[Node]) -> list[str]:
        """What is wrong with the tree, if `readers` are the locked nodes, each as often as it is locked."""
        locks = Counter(node for reader in readers for node in _upwards(reader))
        found, tokens, evictable, count = [], 0, 0, 0
        entries = {(id(node), stamp) for stamp, _, node in self._leaves}
        for node in self.nodes():
            count += 1
            tokens += len(node.key)
            evictable += 0 if node.locks else len(node.key)
            assert node.parent is not None
            if node.locks != locks[node]:
                found.append(f"a node has {node.locks} locks, but {locks[node]} readers")
            hangs = node.parent.children.get(int(node.key[0])) is node
            if not len(node.key) == len(node.slots) > 0 or hangs == (node in self._dropped):
                found.append("a node of the prefix cache is malformed")
            if node.seq < node.parent.seq:
                found.append("a node is older than its parent")
            if _is_free_leaf(node) and (id(node), node.stamp) not in entries:
                found.append("a leaf can never be evicted")
        if (tokens, evictable, count) != (self.tokens, self.evictable, self._nodes):
            found.append(
                f"the prefix cache counts {self.tokens} tokens, {self.evictable} evictable, in {self._nodes} nodes, but has "
                f"{tokens}, {evictable}, {count}"
            )
        return found


def common_length(a: np.ndarray, b: np.ndarray) -> int:
    """How many tokens two arrays have in common at their start."""
    count = min(len(a), len(b))
    if not count:
        return 0
    different = a[:count] != b[:count]
    first = int(different.argmax())
    return first if different[first] else count


def _upwards(node: Node) -> Iterator[Node]:
    """The node and those above it, without the root."""
    while node.parent is not None:
        yield node
        node = node.parent


def _downwards(node: Node) -> Iterator[Node]:
    """The node and those below it, each before its children."""
    stack = [node]
    while stack:
        node = stack.pop()
        yield node
        stack.extend(node.children.values())


def _slots_of(nodes: Iterable[Node]) -> np.ndarray:
    """int32: in the order of the nodes."""
    return np.concatenate([EMPTY_INT32, *(node.slots for node in nodes)])


def _is_free_leaf(node: Node) -> bool:
    return not node.children and not node.locks and node.parent is not None
