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

    There are two texts: that of all tokens, and the shown one, which lacks the skipped special tokens. A stop string
    counts in either: `<|sep|>` stops although it is not shown, and what is shown holds no stop string. The two are the
    same until something is hidden, and again once nothing hidden can be part of a match.
    """

    __slots__ = ("_first", "_matched", "_matched_shown", "_patterns", "_shown", "held", "hit")

    def __init__(self, stops: Sequence[str]) -> None:
        self._patterns = [compile_pattern(stop) for stop in dict.fromkeys(stops)]
        self._matched = [0] * len(self._patterns)
        """How much of each stop string the text of all tokens ends with."""
        self._matched_shown: list[int] = []
        """The same for the shown text; empty while the two are the same."""
        self._shown = bytearray()
        """While the two differ: the end of the text of all tokens, a character a byte, 1 if it is shown and in `held`."""
        self._first = frozenset(stop[0] for stop in stops)
        self.held = ""
        """Shown text that may still become a stop string: not released yet."""
        self.hit: str | None = None
        """The stop string that was found; nothing may be pushed afterwards."""

    def push(self, text: str, armed: bool = True) -> str:
        """Takes the next text; returns what is certain to be output. With a match (`hit`) that is what precedes it.

        `armed=False`: a stop string that ends within `text` does not count.
        """
        if self._matched_shown:
            return self._push_apart(text, True, armed)
        if not self.held and self._first.isdisjoint(text):
            return text
        longest, end, self.hit = self._advance_all(self._matched, text, armed)
        pending = self.held + text
        cut = len(pending) - longest if self.hit is None else len(self.held) + end - longest
        self.held = pending[cut:] if self.hit is None else ""
        return pending[:cut]

    def push_hidden(self, text: str, armed: bool = True) -> str:
        """The same for the text of a token that is not shown."""
        if not self._matched_shown:
            if not self.held and self._first.isdisjoint(text):
                return ""
            self._matched_shown = [*self._matched]
            self._shown[:] = b"\1" * len(self.held)
        return self._push_apart(text, False, armed)

    def _push_apart(self, text: str, shown: bool, armed: bool) -> str:
        """Where the two texts differ. Certain is what neither holds back; of two matches that end together the one that
        begins first counts."""
        before, before_shown = len(self._shown), len(self.held)
        self._shown += (b"\1" if shown else b"\0") * len(text)
        longest, end, stop = self._advance_all(self._matched, text, armed)
        start = (before + end if stop else len(self._shown)) - longest
        in_all = end, self._shown.count(1, 0, start), stop
        if shown:
            self.held += text
            longest, end, stop = self._advance_all(self._matched_shown, text, armed)
            in_shown = end, (before_shown + end if stop else len(self.held)) - longest, stop
        else:
            in_shown = end, before_shown - max(self._matched_shown), None
        found = [match for match in (in_all, in_shown) if match[2] is not None]
        _, cut, self.hit = min(found or (in_all, in_shown), key=lambda match: match[:2])
        released, self.held = self.held[:cut], self.held[cut:] if self.hit is None else ""
        self._shown[:start] = b"\1" * (self._shown.count(1, 0, start) - cut)
        if 0 not in self._shown and self._matched == self._matched_shown:
            self._matched_shown = []
        return released

    def _advance_all(self, states: list[int], text: str, armed: bool) -> tuple[int, int, str | None]:
        """Runs all automata from `states`. (length of the match, index in `text` behind it, the stop string), or without a
        match (how many characters at the end of the text may become one, len(text), None)."""
        longest, end, length, hit = 0, len(text), 0, None
        for i, pattern in enumerate(self._patterns):
            states[i], found = _advance(pattern, states[i], text, end, armed)
            longest = max(longest, states[i])
            if found >= 0 and (found < end or len(pattern.text) > length):
                end, length, hit = found, len(pattern.text), pattern.text
        return (longest, end, None) if hit is None else (length, end, hit)


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
