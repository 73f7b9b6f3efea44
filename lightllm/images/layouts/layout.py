"""The description of one model's images in its prompts."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lightllm.errors import InvalidModel
from lightllm.images.source import Detail


@dataclasses.dataclass(frozen=True, slots=True)
class Footprint:
    """What one image takes of a prompt."""

    tokens: int
    grid: tuple[int, int, int] | None = None
    """(t, h, w) of its tokens, t * h * w = tokens, for rope positions of three axes (M-RoPE)."""
    tiles: tuple[int, int] = (1, 1)
    """(columns, rows) that the image is cut into; with more than one, a thumbnail follows the tiles."""
    max_tiles: int | None = None
    """The limit that `detail` sets, for the preprocessing; part of the content key. None: the model's own."""


@dataclasses.dataclass(frozen=True)
class Layout:
    family: str
    marker: str
    """What a client, or a chat template, writes in the prompt for an image."""
    footprint: Callable[[int, int, Detail], Footprint]
    """(width, height, detail) -> what that image takes. Raises `InvalidImage` for sizes that the model cannot take."""
    fingerprint: str
    """Of everything that decides how an image is processed; part of the content key."""
    written: str | None = None
    """What is tokenized in place of each marker; None: the prompt is cut at the markers, and its pieces are tokenized."""
    placeholder: int = -1
    """The token id among `written`'s that stands for the whole image; -1 with pieces, between which it is put."""
    begin: int | None = None
    """With `end`: ids around a placeholder; whatever tokens are between them (the image's name) go. None: the placeholder alone."""
    end: int | None = None
    pattern: re.Pattern[str] | None = None
    """Of markers that are written in more than one way; None: `marker` literally."""
    bidirectional: bool = False
    """Tokens of an image attend to each other in both directions: one prefill chunk must hold them all."""

    def content_key(self, sha256: str, footprint: Footprint) -> str:
        """Of the image's embedding in the cache: the same bytes processed in the same way."""
        limit = "" if footprint.max_tiles is None else f"-{footprint.max_tiles}"
        return f"{sha256}-{self.fingerprint}{limit}"


@dataclasses.dataclass(frozen=True)
class VisionFolder:
    """What a layout is made from."""

    path: Path
    config: Mapping[str, Any]
    """config.json as it is."""
    processor: Mapping[str, Any]
    """preprocessor_config.json; {} without one."""
    token_id: Callable[[str], int | None]
    """Of the model's tokenizer."""

    def id_of(self, token: str, *names: str) -> int:
        """The first of config.json's `names` that is an id, else the tokenizer's id of `token`."""
        told = next((self.config[name] for name in names if isinstance(self.config.get(name), int)), None)
        found = self.token_id(token) if told is None else told
        if found is None:
            raise InvalidModel(
                f"The tokenizer has no token {token}, which stands for images.", "Download the model again."
            )
        return found

    def fingerprint(self, family: str, *numbers: object) -> str:
        """16 hexadecimal digits of the family, its processor's settings and `numbers`."""
        told = json.dumps([family, self.processor, numbers], sort_keys=True, default=str)
        return hashlib.sha256(told.encode()).hexdigest()[:16]


def side(value: Any, name: str) -> int:
    """Of squares: a number, or the same number twice."""
    if isinstance(value, list) and len(value) == 2 and value[0] == value[1]:
        value = value[0]
    return positive(value, name)


def positive(value: Any, name: str) -> int:
    """A count or a size of a model folder. Raises `InvalidModel` naming it."""
    if not isinstance(value, int) or isinstance(value, bool) or value <= 0:
        raise InvalidModel(
            f"{name} of the model must be a positive integer, got {value!r}.", "Correct the file."
        )
    return value
