"""Finding markers in text that arrives piece by piece."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable

from lightllm.parsers.readers import SPACE

MAX_MARKER_SPACE = 64
"""Characters of white space before a marker that belong to it."""


class Terminals:
    """The markers that one state looks for.

    Where they are found does not depend on how the text is cut: no marker lies within another one's proper beginning, so what is
    found first stays the first, whatever comes.
    """

    __slots__ = ("_firsts", "_longest", "_pattern", "_prefixes", "texts")

    def __init__(self, texts: Iterable[str]) -> None:
        """Raises `ValueError` for texts of which one lies within another's beginning."""
        self.texts = frozenset(texts)
        if nested := find_nested(self.texts):
            raise ValueError(f"the marker {nested[0]!r} lies within the beginning of {nested[1]!r}")
        self._pattern = re.compile("|".join(map(re.escape, sorted(self.texts))) or r"(?!)")
        self._firsts = frozenset(text[0] for text in self.texts)
        self._prefixes = frozenset(text[:end] for text in self.texts for end in range(1, len(text)))
        self._longest = max(map(len, self.texts), default=0)

    def find(self, text: str) -> re.Match[str] | None:
        """The first marker in `text`."""
        return None if self._firsts.isdisjoint(text) else self._pattern.search(text)

    def at_start(self, text: str) -> re.Match[str] | None:
        """The marker with which `text` begins."""
        return self._pattern.match(text)

    def held(self, text: str) -> int:
        """How many characters at the end of `text`, which holds no marker, may be the beginning of one."""
        end = text[1 - self._longest :] if self._longest > 1 else ""
        if self._firsts.isdisjoint(end):
            return 0
        for size in range(len(end), 0, -1):
            if end[-size:] in self._prefixes:
                return size
        return 0

    def may_begin(self, text: str) -> bool:
        """Whether `text` is the beginning of a marker."""
        return text in self._prefixes


def without_space(text: str) -> int:
    """Where the white space at its end begins, as far as it can belong to a marker behind it."""
    return max(len(text.rstrip(SPACE)), len(text) - MAX_MARKER_SPACE)


@functools.lru_cache(4096)
def terminals(texts: frozenset[str]) -> Terminals:
    return Terminals(texts)


def find_nested(texts: Iterable[str]) -> tuple[str, str] | None:
    """A marker that lies within another one's proper beginning, and that other one."""
    ordered = sorted(texts, key=len)
    for number, short in enumerate(ordered):
        for long in ordered[number + 1 :]:
            if short in long[:-1]:
                return short, long
    return None
