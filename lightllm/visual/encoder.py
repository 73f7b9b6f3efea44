"""What a vision encoder looks like to the Visual Server: bytes and parameters in, raw tensors out."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable
from typing import Protocol

import msgspec

from lightllm.ipc.encoder_memory import EncoderMemory
from lightllm.ipc.image_files import Buffer
from lightllm.protocol.images import EncodeItem, Parameters


class EncoderInput(msgspec.Struct, frozen=True):
    data: bytes
    """What the Http Server stored."""
    params: Parameters
    tokens: int
    """Positions that the image takes in the prompt."""


class EncoderOutput(msgspec.Struct, frozen=True):
    """A tensor in C order: [tokens, ...]."""

    dtype: str
    """float32, float16 or bfloat16."""
    shape: list[int]
    data: Buffer


@dataclasses.dataclass(frozen=True)
class BatchLimits:
    """What is encoded at once; one image may always be."""

    images: int
    tokens: int
    """Of all images together, in prompts."""

    def first(self, items: Iterable[EncodeItem]) -> list[EncodeItem]:
        """As many as are encoded at once."""
        found = list(itertools.islice(items, self.images))
        totals = itertools.accumulate(item.tokens for item in found)
        return found[: max(sum(total <= self.tokens for total in totals), 1)]


class Encoder(Protocol):
    limits: BatchLimits
    memory: EncoderMemory

    def encode(self, images: list[EncoderInput]) -> list[EncoderOutput]:
        """One output an image, in order. Any exception means that one of them cannot be encoded."""

    def close(self) -> None:
        """Ends the processes that it has started."""
