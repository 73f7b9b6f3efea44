"""Images of one Http worker's requests: from what a body says of them to a prompt that holds them, and their embeddings.

    count   loads them and counts their tokens: enough to know whether the prompt fits
    hold    keeps each in the image cache, has those encoded that are new, and puts their ids into the prompt's record

What is held is released when the engine's client forgets the request.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Awaitable, Callable, Sequence

from lightllm.config import ServerConfig
from lightllm.errors import BackendFailed, InvalidImage, ServerOverloaded
from lightllm.http.metric_store import MetricStore
from lightllm.httpserver.encode_tickets import EncodeTickets
from lightllm.httpserver.record import PromptRecord
from lightllm.images.intake import Intake, LoadedImage
from lightllm.images.layouts.layout import Footprint, Layout
from lightllm.images.limits import ImageLimits
from lightllm.images.prompt import place
from lightllm.images.source import ImageSource
from lightllm.ipc.image_cache import ImageCache
from lightllm.ipc.image_files import largest_size
from lightllm.ipc.rpc import RpcError
from lightllm.protocol import metrics
from lightllm.protocol.arrays import int32
from lightllm.protocol.images import MAX_TILES, EncodeItem, Held, HeldItems, Parameters, Want
from lightllm.protocol.messages import ImageSpan

_LARGEST_DTYPE = "float32"
"""Of embeddings: room is reserved for it, and given back when the real size is known."""


@dataclasses.dataclass(frozen=True)
class CountedImages:
    """Images of one prompt, in the order of its markers."""

    loaded: list[LoadedImage]
    footprints: list[Footprint]
    field: str
    """Where in the body they came from."""
    extra: int
    """How many tokens more the prompt has with them than with their markers."""


class Images:
    """Of a model that sees. Used in the event loop."""

    def __init__(
        self,
        config: ServerConfig,
        layout: Layout,
        width: int,
        cache: ImageCache,
        store: MetricStore,
        flush: Callable[[], Awaitable[int]],
    ) -> None:
        """width: numbers a token of an embedding; flush: empties the prefix cache."""
        self.layout = layout
        self.cache = cache
        self.encodes: EncodeTickets
        """Set when the sockets are open."""
        self._intake = Intake(ImageLimits.of(config))
        self._width = width
        self._wait = config.image_wait
        self._store = store
        self._flush = flush
        self._cycle = 0
        self._flushing = asyncio.Lock()

    def close(self) -> None:
        self._intake.close()
        self.cache.close()

    async def count(
        self, ids: Sequence[int], sources: Sequence[ImageSource], field: str
    ) -> CountedImages | None:
        """ids: with markers; None: there are none. Raises `InvalidImage`, before anything is loaded where there are not as many
        markers as images."""
        place(ids, self.layout, [(0, 1)] * len(sources), field)
        if not sources:
            return None
        loaded = await self._intake.load(sources)
        footprints = [self.layout.footprint(i.width, i.height, i.source.detail) for i in loaded]
        placed = place(ids, self.layout, [(0, footprint.tokens) for footprint in footprints], field)
        return CountedImages(loaded, footprints, field, len(placed.ids) - len(ids))

    async def hold(self, prompt: PromptRecord, images: CountedImages) -> None:
        """Gives the record one reference to each image, none if it raises, and their ids in place of their markers.

        Raises `ServerOverloaded` where the image cache stays full, `BackendFailed` for an image that cannot be encoded.
        """
        if sized := next((image for image in images.loaded if image.data is None), None):
            raise InvalidImage(
                f"{sized.source.field} is a size, which is enough for /tokens alone", param=sized.source.field
            )
        held = await self.cache.hold(self._wants(images), self._wait)
        try:
            await self._renew(held)
            await self._have_stored(held.items, images)
            await self._have_encoded(held.items, images)
        except BaseException:
            self.cache.release([item.item_id for item in held.items])
            raise
        self._store.add(metrics.IMAGE_COUNT, len(held.items))
        self._place(prompt, held.items, images)

    def _wants(self, images: CountedImages) -> list[Want]:
        wants = []
        for image, footprint in zip(images.loaded, images.footprints, strict=True):
            assert image.data is not None
            size = largest_size(len(image.data), [footprint.tokens, self._width], _LARGEST_DTYPE)
            wants.append(Want(self.layout.content_key(image.sha256, footprint), footprint.tokens, size))
        return wants

    async def _renew(self, held: HeldItems) -> None:
        """Virtual ids begin anew: what the prefix cache holds under them belongs to other images."""
        async with self._flushing:
            if held.cycle > self._cycle:
                await self._flush()
                self._cycle = held.cycle

    async def _have_stored(self, items: Sequence[Held], images: CountedImages) -> None:
        new = {
            item.item_id: image.data
            for item, image in zip(items, images.loaded, strict=True)
            if not item.has_data and not item.has_embedding and image.data is not None
        }
        try:
            for item_id, data in new.items():
                await asyncio.wrap_future(self.cache.store(item_id, data))
        except (OSError, RpcError) as error:
            raise ServerOverloaded("the image cache has no room for the images", retry_after=1) from error

    async def _have_encoded(self, items: Sequence[Held], images: CountedImages) -> None:
        new: dict[int, EncodeItem] = {}
        fields: dict[int, str] = {}
        for item, image, footprint in zip(items, images.loaded, images.footprints, strict=True):
            if not item.has_embedding:
                key = self.layout.content_key(image.sha256, footprint)
                parameters: Parameters = {}
                if footprint.max_tiles is not None:
                    parameters[MAX_TILES] = footprint.max_tiles
                new[item.item_id] = EncodeItem(item.item_id, key, item.first_id, item.tokens, parameters)
                fields.setdefault(item.item_id, image.source.field)
        if not new:
            return
        errors = await self.encodes.encode(list(new.values()))
        for item_id, error in errors.items():
            raise BackendFailed(
                f"{fields[item_id]}: the image could not be encoded ({error})", param=fields[item_id]
            )

    def _place(self, prompt: PromptRecord, items: Sequence[Held], images: CountedImages) -> None:
        placed = place(
            prompt.prompt_ids, self.layout, [(item.first_id, item.tokens) for item in items], images.field
        )
        prompt.prompt_ids = placed.ids
        prompt.images = [
            ImageSpan(start, item.tokens, item.item_id, footprint.grid)
            for start, item, footprint in zip(placed.starts, items, images.footprints, strict=True)
        ]
        if self.layout.bidirectional:
            prompt.uncut = int32(
                [border for span in prompt.images for border in (span.start, span.start + span.tokens)]
            )
