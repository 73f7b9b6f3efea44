"""Images of one Http worker's requests: from what a body says of them to a prompt that holds them, and their embeddings.

    count   loads them and counts their tokens: enough to know whether the prompt fits
    hold    keeps each in the image cache, has those encoded that are new, and puts their ids into the prompt's record

What is held is released when the engine's client forgets the request.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from lightllm.config import ServerConfig
from lightllm.errors import InvalidImage, ServerOverloaded
from lightllm.http.body import BodyBudget, BodyLease
from lightllm.http.metric_store import MetricStore
from lightllm.httpserver.encode_tickets import EncodeTickets
from lightllm.httpserver.record import PromptRecord
from lightllm.images.counted import CountedImages, count_images, encode_failure
from lightllm.images.intake import Intake
from lightllm.images.layouts.layout import Layout
from lightllm.images.limits import ImageLimits
from lightllm.images.prompt import MarkedPrompt
from lightllm.images.source import ImageSource
from lightllm.ipc.image_cache import ImageCache
from lightllm.ipc.rpc import RpcError
from lightllm.protocol import metrics
from lightllm.protocol.images import Held, HeldItems


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
        limits = ImageLimits.of(config)
        self._intake = Intake(limits)
        self._budget = BodyBudget(limits.max_bytes_together, "images of requests")
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
        markers as images, and `ServerOverloaded` when the images that requests hold have used up their budget."""
        lease = BodyLease(self._budget)
        prompts = [MarkedPrompt(ids, sources, field)]
        try:
            (counted,) = await count_images(self._intake, self.layout, prompts, lease.grow)
        except BaseException:
            lease.end()
            raise
        if counted is not None:
            lease.end_with(counted)
        return counted

    async def hold(self, prompt: PromptRecord, images: CountedImages) -> None:
        """Gives the record one reference to each image, none if it raises, and their ids in place of their markers.

        Raises `ServerOverloaded` where the image cache stays full, `BackendFailed` for an image that cannot be encoded.
        """
        if sized := next((image for image in images.loaded if image.data is None), None):
            raise InvalidImage(
                f"{sized.source.field} is a size, which is enough for /tokens alone", param=sized.source.field
            )
        held = await self.cache.hold(images.wants(self._width), self._wait)
        try:
            await self._renew(held)
            await self._have_stored(held.items, images)
            await self._have_encoded(held.items, images)
        except BaseException:
            self.cache.release([item.item_id for item in held.items])
            raise
        self._store.add(metrics.IMAGE_COUNT, len(held.items))
        prompt.prompt_ids, prompt.images, prompt.uncut = images.place(held.items)

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
        new = images.to_encode(items)
        if new:
            errors = await self.encodes.encode([item for item, _ in new.values()])
            for item_id, error in errors.items():
                raise encode_failure(new[item_id][1], error)
