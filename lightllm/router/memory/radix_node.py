"""A node of the prefix cache's tree."""

from __future__ import annotations

import numpy as np


class Node:
    """`key` and `slots`: int32 [tokens], at least one (none in the root). `children`: by the first token of their key."""

    __slots__ = ("children", "key", "locks", "parent", "seq", "slots", "sound", "stamp")

    def __init__(self, parent: Node | None, key: np.ndarray, slots: np.ndarray, seq: int) -> None:
        self.parent = parent
        self.key = key
        self.slots = slots
        self.seq = seq
        self.children: dict[int, Node] = {}
        self.locks = 0
        """Readers whose prefix ends here or below."""
        self.sound = False
        """Tokens have been sampled that depend on it."""
        self.stamp = 0
        """When it was last locked or unlocked."""
