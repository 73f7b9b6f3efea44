"""Prompts with images: from a text with markers to token ids in which every image has ids of its own.

"What is this? <image>"  --encode-->  [.., placeholder]  --place-->  [.., first_id, first_id + 1, .., first_id + tokens - 1]
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from lightllm.errors import InvalidImage
from lightllm.images.layouts.layout import Layout
from lightllm.images.source import ImageSource


class MarkedPrompt(NamedTuple):
    """A prompt as it was tokenized, with its images."""

    ids: Sequence[int]
    """With markers."""
    sources: Sequence[ImageSource]
    field: str
    """Where the images came from, for errors."""


class PlacedImages(NamedTuple):
    ids: list[int]
    starts: list[int]
    """Index of each image's first id in `ids`."""


def encode(
    text: str, layout: Layout, tokenize: Callable[[str, bool], list[int]], add_special_tokens: bool
) -> list[int]:
    """Token ids, one placeholder for each marker. `tokenize`: `Tokenizer.encode`.

    A prompt in pieces gets BOS and the like in front of its first piece alone.
    """
    if layout.written is not None:
        if layout.pattern is not None:
            text = layout.pattern.sub(layout.written, text)
        elif layout.written != layout.marker:
            text = text.replace(layout.marker, layout.written)
        return tokenize(text, add_special_tokens)
    first, *others = text.split(layout.marker)
    ids = tokenize(first, add_special_tokens)
    for piece in others:
        ids += [layout.placeholder, *tokenize(piece, False)]
    return ids


def place(ids: Sequence[int], layout: Layout, images: Sequence[tuple[int, int]], field: str) -> PlacedImages:
    """`images`: (first id, number of tokens) of each, in the order of the markers. `field`: where the images came from.

    Raises `InvalidImage` with both numbers if there are not as many markers as images.
    """
    markers = _markers(ids, layout)
    if len(markers) != len(images):
        raise InvalidImage(
            f"the prompt has {_count(len(markers), 'marker')} {layout.marker}, "
            f"but {_count(len(images), 'image')} came with it: they must be as many",
            param=field,
        )
    result: list[int] = []
    starts: list[int] = []
    copied = 0
    for (start, end), (first_id, tokens) in zip(markers, images):
        result += ids[copied:start]
        starts.append(len(result))
        result += range(first_id, first_id + tokens)
        copied = end
    return PlacedImages(result + list(ids[copied:]), starts)


def _markers(ids: Sequence[int], layout: Layout) -> list[tuple[int, int]]:
    """(start, end) of what gives way to each image."""
    if layout.begin is None:
        return [(i, i + 1) for i, token in enumerate(ids) if token == layout.placeholder]
    found, opened = [], None
    for i, token in enumerate(ids):
        if token == layout.begin:
            opened = i + 1
        elif token == layout.end and opened is not None:
            found.append((opened, i))
            opened = None
    return found


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
