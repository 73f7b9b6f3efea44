"""Images of requests, many at once: downloaded, hashed and checked without keeping the event loop.

Downloads run in the event loop, a limited number at a time; everything that computes or reads files runs in threads. Cancelling
`load` (the client is gone) ends its downloads and drops what waits for a thread.
"""

from __future__ import annotations

import asyncio
import binascii
import dataclasses
import hashlib
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from lightllm.errors import InvalidImage
from lightllm.images.decode import check
from lightllm.images.fetch import Fetcher
from lightllm.images.limits import ImageLimits
from lightllm.images.local_files import read_local_file
from lightllm.images.source import Base64Text, Bitmap, FileUrl, ImageSource, RemoteUrl, Size

DOWNLOADS_AT_ONCE = 16
"""Of one Http worker. Each holds up to --max_image_mb."""
_MOST_THREADS = 4
_REMEMBERED = 4096
"""Contents that are known to be sound, by hash."""


@dataclasses.dataclass(frozen=True, slots=True)
class LoadedImage:
    source: ImageSource
    width: int
    """Of the upright image."""
    height: int
    data: bytes | None = None
    """As it came, still encoded; None for an image that is only counted."""
    sha256: str = ""
    """Of `data`, in hexadecimal."""


class Intake:
    """Of one Http worker. `fetcher`: for tests; by default one with the same limits."""

    def __init__(self, limits: ImageLimits, fetcher: Fetcher | None = None) -> None:
        self._limits = limits
        self._fetcher = fetcher or Fetcher(limits)
        self._threads = ThreadPoolExecutor(min(_MOST_THREADS, os.cpu_count() or 1), "images")
        self._downloads = asyncio.Semaphore(DOWNLOADS_AT_ONCE)
        self._sound: dict[str, tuple[int, int]] = {}
        """Content hash -> size; the oldest first."""

    async def load(self, sources: Sequence[ImageSource]) -> list[LoadedImage]:
        """One for each source, in order; the same content is loaded once. Raises `InvalidImage`: the first error ends the rest."""
        return (await self.load_all([sources]))[0]

    async def load_all(
        self, requests: Sequence[Sequence[ImageSource]], hold: Callable[[int], None] | None = None
    ) -> list[list[LoadedImage]]:
        """The same for several requests together. hold: told how many bytes are held for them, as often as there are more; what
        it raises ends the rest too."""
        firsts: dict[object, ImageSource] = {}
        wanted_by: dict[object, set[int]] = {}
        for request, sources in enumerate(requests):
            if len(sources) > self._limits.max_images:
                raise InvalidImage(
                    f"the request has {len(sources)} images, at most {self._limits.max_images} (--max_images)",
                    param=sources[0].field.partition(".")[0],
                )
            for source in sources:
                firsts.setdefault(source.content, source)
                wanted_by.setdefault(source.content, set()).add(request)
        held = [0] * len(requests)
        together = 0

        async def load(key: object, source: ImageSource) -> LoadedImage:
            nonlocal together
            image = await self._load(source)
            together += self._counted_bytes(image)
            if hold is not None:
                hold(together)
            for request in wanted_by[key]:
                held[request] += self._counted_bytes(image)
                if held[request] > self._limits.max_bytes_together:
                    raise self._too_much(source)
            return image

        try:
            async with asyncio.TaskGroup() as group:
                tasks = {key: group.create_task(load(key, source)) for key, source in firsts.items()}
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None
        return [
            [dataclasses.replace(tasks[source.content].result(), source=source) for source in sources]
            for sources in requests
        ]

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._fetcher.close()

    def _counted_bytes(self, image: LoadedImage) -> int:
        """What is open already (`Bitmap`) has been paid for."""
        return 0 if image.data is None or isinstance(image.source.content, Bitmap) else len(image.data)

    def _too_much(self, source: ImageSource) -> InvalidImage:
        most = self._limits.max_bytes_together
        return InvalidImage(
            f"{source.field}: the images of the request have more than {most} bytes together (--max_images_mb)",
            param=source.field.partition(".")[0],
        )

    async def _load(self, source: ImageSource) -> LoadedImage:
        if isinstance(source.content, Size):
            return LoadedImage(source, *source.content)
        data: bytes | None = None
        if isinstance(source.content, RemoteUrl):
            async with self._downloads:
                data = await self._fetcher.get(source.content.url, source.field)
        loop = asyncio.get_running_loop()
        image = await loop.run_in_executor(self._threads, self._examine, source, data)
        self._sound[image.sha256] = (image.width, image.height)
        if len(self._sound) > _REMEMBERED:
            del self._sound[next(iter(self._sound))]
        return image

    def _examine(self, source: ImageSource, data: bytes | None) -> LoadedImage:
        """In a thread. `data`: what was downloaded."""
        if data is None:
            data = self._read(source)
        sha256 = hashlib.sha256(data).hexdigest()
        size = self._sound.get(sha256) or check(data, self._limits.max_pixels, source.field)
        return LoadedImage(source, *size, data, sha256)

    def _read(self, source: ImageSource) -> bytes:
        content, field, limit = source.content, source.field, self._limits.max_bytes
        if isinstance(content, Bitmap):
            return content.data
        if isinstance(content, FileUrl):
            return read_local_file(content.url, self._limits, field)
        if isinstance(content, Base64Text):
            try:
                data = binascii.a2b_base64("".join(content.text.split()), strict_mode=True)
            except ValueError as error:
                raise InvalidImage(f"{field} is no valid base64 ({error})", param=field) from error
        else:
            assert isinstance(content, bytes)
            data = content
        if len(data) > limit:
            raise InvalidImage(
                f"{field}: the image has {len(data)} bytes, at most {limit} (--max_image_mb)", param=field
            )
        return data
