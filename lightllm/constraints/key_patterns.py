"""Which names a pattern of a schema's patternProperties matches, if they are few. The library itself is asked, byte by byte, so
that the answer is what it would let an output say."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from llguidance import LLMatcher

MAX_NAMES = 64
MAX_BYTES = 400
"""Of the names, beginnings that several share counted once."""


def names_of(pattern: str, matcher_of: Callable[[str], LLMatcher]) -> list[str] | None:
    """All names, in order; None if there are more than `MAX_NAMES`, or if that is not to be seen within `MAX_BYTES`.
    `matcher_of`: a matcher over the 256 bytes for a schema."""
    only = {
        "type": "object",
        "additionalProperties": False,
        "patternProperties": {pattern: {}},
        "minProperties": 1,
    }
    start = matcher_of(json.dumps(only))
    if not start.consume_tokens([*b'{"']):
        return [] if not start.is_error() or "satisf" in start.get_error() else None
    names: set[str] = set()
    todo = [(start, b"")]
    for _ in range(MAX_BYTES):
        if not todo:
            return sorted(names)
        matcher, said = todo.pop()
        mask = np.frombuffer(matcher.compute_bitmask(), dtype=np.uint8)
        if matcher.is_error():
            return None
        for byte in np.flatnonzero(np.unpackbits(mask, bitorder="little")[:256]).tolist():
            if byte == ord('"') and not _escaped(said):
                names.add(json.loads(b'"%b"' % said))
                continue
            after = matcher.deep_copy()
            after.consume_token(byte)
            todo.append((after, said + bytes([byte])))
            if len(names) + len(todo) > MAX_NAMES:
                return None
    return None


def _escaped(said: bytes) -> bool:
    """Whether the next character is part of an escape sequence."""
    return (len(said) - len(said.rstrip(b"\\"))) % 2 == 1
