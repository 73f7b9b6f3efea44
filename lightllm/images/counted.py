"""Images of a prompt on their way through the image cache: counted, then wanted from it, then in their places.

What a server (`httpserver/images.py`) and the offline `LLM` have in common: here nothing waits but for the images themselves.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple

from lightllm.errors import BackendFailed, InvalidImage
from lightllm.images.intake import Intake, LoadedImage
from lightllm.images.layouts.layout import Footprint, Layout
from lightllm.images.prompt import MarkedPrompt, place
from lightllm.ipc.image_files import largest_size
from lightllm.protocol.arrays import EMPTY_INT32, Array, int32
from lightllm.protocol.images import MAX_TILES, EncodeItem, Held, Parameters, Want
from lightllm.protocol.messages import ImageSpan

_LARGEST_DTYPE = "float32"
"""Of embeddings: room is reserved for it, and given back when the real size is known."""


class PlacedPrompt(NamedTuple):
    """A prompt as the Router takes it."""

    ids: list[int]
    images: list[ImageSpan]
    uncut: Array
    """As in `AddRequest`."""


@dataclasses.dataclass(frozen=True)
class CountedImages:
    """Images of one prompt, in the order of its markers."""

    layout: Layout
    prompt: MarkedPrompt
    loaded: list[LoadedImage]
    footprints: list[Footprint]

    @property
    def text_ids(self) -> list[int]:
        """The prompt's token ids but for those of images and markers."""
        ranges = [(0, 0)] * len(self.footprints)
        return place(self.prompt.ids, self.layout, ranges, self.prompt.field).ids

    @property
    def tokens(self) -> int:
        """Of the images."""
        return sum(footprint.tokens for footprint in self.footprints)

    @property
    def extra(self) -> int:
        """How many tokens more the prompt has with its images than with their markers."""
        return len(self.text_ids) + self.tokens - len(self.prompt.ids)

    def wants(self, width: int, stored: bool = True) -> list[Want]:
        """What to hold in the image cache. width: numbers a token of an embedding; stored: the images' bytes are put into the cache
        as well."""
        wants = []
        for image, footprint in zip(self.loaded, self.footprints, strict=True):
            data = len(image.data or b"") if stored else 0
            size = largest_size(data, [footprint.tokens, width], _LARGEST_DTYPE)
            wants.append(Want(self._key(image, footprint), footprint.tokens, size))
        return wants

    def to_encode(self, held: Sequence[Held]) -> dict[int, tuple[EncodeItem, LoadedImage]]:
        """What has no embedding yet, once each, by item."""
        found: dict[int, tuple[EncodeItem, LoadedImage]] = {}
        for item, image, footprint in zip(held, self.loaded, self.footprints, strict=True):
            if not item.has_embedding:
                parameters: Parameters = {}
                if footprint.max_tiles is not None:
                    parameters[MAX_TILES] = footprint.max_tiles
                key = self._key(image, footprint)
                encode = EncodeItem(item.item_id, key, item.first_id, item.tokens, parameters)
                found.setdefault(item.item_id, (encode, image))
        return found

    def place(self, held: Sequence[Held]) -> PlacedPrompt:
        """The prompt with the images' ids in the places of their markers."""
        ranges = [(item.first_id, item.tokens) for item in held]
        ids, starts = place(self.prompt.ids, self.layout, ranges, self.prompt.field)
        spans = [
            ImageSpan(start, item.tokens, item.item_id, footprint.grid)
            for start, item, footprint in zip(starts, held, self.footprints, strict=True)
        ]
        uncut = EMPTY_INT32
        if self.layout.bidirectional:
            uncut = int32([border for span in spans for border in (span.start, span.start + span.tokens)])
        return PlacedPrompt(ids, spans, uncut)

    def _key(self, image: LoadedImage, footprint: Footprint) -> str:
        return self.layout.content_key(image.sha256, footprint)


async def count_images(
    intake: Intake, layout: Layout, prompts: Sequence[MarkedPrompt], hold: Callable[[int], None] | None = None
) -> list[CountedImages | None]:
    """Loads the images of all prompts, the same one once; None for a prompt without any. hold: as `Intake.load_all` has it. Raises
    `InvalidImage`: before anything is loaded where a prompt has not as many markers as images."""
    for prompt in prompts:
        place(prompt.ids, layout, [(0, 1)] * len(prompt.sources), prompt.field)
    loaded = await intake.load_all([prompt.sources for prompt in prompts], hold)
    return [
        CountedImages(layout, prompt, images, [_footprint(layout, image) for image in images])
        if images
        else None
        for prompt, images in zip(prompts, loaded, strict=True)
    ]


def encode_failure(image: LoadedImage, error: str) -> BackendFailed:
    """The error of a request with an image that no embedding could be made of."""
    field = image.source.field
    return BackendFailed(f"{field}: the image could not be encoded ({error})", param=field)


def _footprint(layout: Layout, image: LoadedImage) -> Footprint:
    source = image.source
    try:
        return layout.footprint(image.width, image.height, source.detail)
    except InvalidImage as error:
        raise InvalidImage(f"{source.field}: {error.message}", param=source.field) from error
