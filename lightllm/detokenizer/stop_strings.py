"""Stop strings in text that arrives piece by piece.

A match may begin in one piece and end in another. What is held back is never more than the longest end of the text
that may still become a stop string. Each stop string runs its own Knuth-Morris-Pratt automaton, so a character costs
a constant number of steps per stop string, however long and however self-similar those are.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple


class Pattern(NamedTuple):
    text: str
    borders: list[int]
    """borders[k]: length of the longest proper prefix of text[:k] that is also its suffix."""


@lru_cache(maxsize=1024)
def compile_pattern(text: str) -> Pattern:
    """The automaton of one stop string (not empty)."""
    borders = [0, 0]
    k = 0
    for character in text[1:]:
        while k and text[k] != character:
            k = borders[k]
        if text[k] == character:
            k += 1
        borders.append(k)
    return Pattern(text, borders)


class StopMatcher:
    """The stop strings of one stream. The match that ends first wins; of those that end together the longest.

    "Ends first" makes the result independent of how the text is cut into pieces.
    """

    __slots__ = ("_first", "_matched", "_patterns", "held", "hit")

    def __init__(self, stops: Sequence[str]) -> None:
        self._patterns = [compile_pattern(stop) for stop in dict.fromkeys(stops)]
        self._matched = [0] * len(self._patterns)
        self._first = frozenset(stop[0] for stop in stops)
        self.held = ""
        """Text that may still become a stop string: not released yet."""
        self.hit: str | None = None
        """The stop string that was found; nothing may be pushed afterwards."""

    def push(self, text: str, armed: bool = True) -> str:
        """Takes the next text; returns what is certain to be output. With a match (`hit`) that is what precedes it.

        `armed=False`: a stop string that ends within `text` does not count.
        """
        if not self.held and self._first.isdisjoint(text):
            return text
        matched = self._matched
        longest, end, length = 0, len(text), 0
        for i, pattern in enumerate(self._patterns):
            state, found = _advance(pattern, matched[i], text, end, armed)
            matched[i] = state
            if state > longest:
                longest = state
            if found >= 0 and (found < end or len(pattern.text) > length):
                end, length, self.hit = found, len(pattern.text), pattern.text
        pending = self.held + text
        cut = len(pending) - longest
        if self.hit is not None:
            cut = len(self.held) + end - length
        self.held = pending[cut:] if self.hit is None else ""
        return pending[:cut]


def _advance(pattern: Pattern, k: int, text: str, end: int, armed: bool) -> tuple[int, int]:
    """Runs one automaton over text[:end] from state `k`; returns (state, index behind the first match or -1)."""
    stop, borders = pattern
    length = len(stop)
    i = 0
    while i < end:
        if k == 0:
            i = text.find(stop[0], i, end)
            if i < 0:
                return 0, -1
            k = 1
        else:
            character = text[i]
            while k and stop[k] != character:
                k = borders[k]
            if stop[k] == character:
                k += 1
        i += 1
        if k == length:
            if armed:
                return k, i
            k = borders[k]
    return k, -1


class TokenMatcher:
    """Stop sequences that have no text of their own (skipped special tokens, parts of characters): matched on ids."""

    __slots__ = ("_recent", "_sequences", "_size")

    def __init__(self, sequences: Sequence[Sequence[int]]) -> None:
        self._sequences = [list(sequence) for sequence in sequences]
        self._size = max(map(len, self._sequences))
        self._recent: list[int] = []

    def push(self, token_id: int) -> bool:
        """Takes the next token id; True if a sequence ends with it."""
        recent = self._recent
        recent.append(token_id)
        if len(recent) > 2 * self._size:
            del recent[: -self._size]
        return any(
            token_id == sequence[-1] and recent[-len(sequence) :] == sequence for sequence in self._sequences
        )
