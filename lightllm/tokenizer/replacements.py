"""How much longer the replacements of a tokenizer.json can make a text: a dozen that double it are gigabytes."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from typing import Any

MAX_GROWTH = 16.0
"""Times the characters of a text. Published files stay below 4; a text of 64 Ki characters takes 150 MB at 16."""

_UNICODE_CLASS = re.compile(r"\\[pP]\{[^}]*\}")


def growth(step: Any) -> float:
    """At most how many characters one character becomes; `step`: a normalizer or decoder as tokenizer.json states it."""
    whole = 1.0
    for replace in _replacements(step):
        pattern, content = replace.get("pattern"), len(str(replace.get("content", "")))
        if isinstance(pattern, dict) and isinstance(pattern.get("String"), str):
            shortest = len(pattern["String"])
        else:
            shortest = _shortest_match(pattern.get("Regex", "") if isinstance(pattern, dict) else "")
        # What matches nothing is found in front of every character, and leaves it there.
        whole *= max(1.0, content / shortest) if shortest else 1.0 + content
    return whole


def _replacements(step: Any) -> Iterator[dict[str, Any]]:
    """Every `Replace` in it, in whatever sequences of sequences."""
    left = [step]
    while left:
        item = left.pop()
        if isinstance(item, list):
            left += item
        elif isinstance(item, dict):
            if item.get("type") == "Replace":
                yield item
            left += [value for value in item.values() if isinstance(value, dict | list)]


def _shortest_match(pattern: Any) -> int:
    """Characters of the shortest match of a regular expression; 0 for one that is not understood."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return re._parser.parse(_UNICODE_CLASS.sub(".", pattern)).getwidth()[0]  # type: ignore[attr-defined]
    except (re.error, TypeError, OverflowError, RecursionError):
        return 0
