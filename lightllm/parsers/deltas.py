"""The contract of a parser: text in, deltas out.

A stream pushes the text as it comes, in pieces of any size, and ends once; a whole answer is pushed at once. What comes out, joined
by kind and index, is the same either way: a parser keeps back what may still become a marker.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol

import msgspec


class Delta(msgspec.Struct, frozen=True, gc=False):
    """A further piece of an answer."""

    text: str
    """Of the kind; the arguments of a tool call."""
    kind: Literal["content", "reasoning", "tool_call"] = "content"
    index: int = 0
    """Which tool call, in the order in which they begin."""
    name: str = ""
    """The called function, in the first delta of a tool call."""
    call_id: str = ""
    """The id of a tool call, in its first delta."""


class DeltaParser(Protocol):
    """One answer's parser. One whose markers are special tokens gets the text with them, and leaves out those that are no
    markers (`chat_format.Maker`)."""

    @property
    def spans(self) -> Sequence[tuple[int, int]] | None:
        """Where in the pushed text reasoning begins and ends, in characters; None: nothing is taken for reasoning."""

    def push(self, text: str) -> list[Delta]:
        """The deltas that are certain with this text; maybe none."""

    def end(self) -> list[Delta]:
        """The rest, when no more text comes."""


class ContentParser:
    """Takes everything for content."""

    spans: None = None

    def push(self, text: str) -> list[Delta]:
        return [Delta(text)]

    def end(self) -> list[Delta]:
        return []


def tokens_within(texts: Sequence[str], spans: Sequence[tuple[int, int]]) -> int:
    """How many tokens begin within the spans (characters, ascending); texts: of all tokens, in order."""
    count = position = 0
    todo = iter(spans)
    start, end = next(todo, (0, 0))
    for text in texts:
        while end <= position:
            span = next(todo, None)
            if span is None:
                return count
            start, end = span
        count += start <= position
        position += len(text)
    return count
