"""What the images of all requests of one worker may take until they are in the image cache."""

from __future__ import annotations

import asyncio
import gc
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image
from support.drawn_images import encoded

from lightllm.config import ServerConfig
from lightllm.errors import InvalidImage, ServerOverloaded
from lightllm.httpserver.images import Images
from lightllm.images.counted import CountedImages
from lightllm.images.layouts.registry import LAYOUTS, VisionFolder
from lightllm.images.source import ImageSource

MARKER = 10
SIDE = 560
"""Pixels: 0.9 MiB of them."""


def picture(shade: int) -> bytes:
    return encoded(Image.new("RGB", (SIDE, SIDE), (shade, 0, 0)), "BMP")


def test_images_that_requests_hold_are_bounded_together_and_given_back_with_the_request() -> None:
    layout = LAYOUTS["llava"](VisionFolder(Path(), {}, {}, {"<image>": MARKER}.get))
    nothing: Any = SimpleNamespace(close=lambda: None)
    images = Images(ServerConfig(max_image_mb=1, max_images_mb=1), layout, 8, nothing, nothing, nothing)

    async def count(*data: bytes) -> CountedImages | None:
        sources = [ImageSource(one, f"images.{number}") for number, one in enumerate(data)]
        return await images.count([MARKER] * len(data), sources, "images")

    async def test() -> None:
        for _ in range(5):  # what is refused holds nothing
            with pytest.raises(InvalidImage, match="--max_images_mb"):
                await count(picture(9), picture(10))
            with pytest.raises(InvalidImage):
                await count(picture(9), b"no image")
        requests = [await count(picture(number)) for number in range(4)]
        with pytest.raises(ServerOverloaded, match="images of requests.*4 MiB together") as refused:
            await count(picture(9))
        assert refused.value.retry_after
        requests.pop()
        gc.collect()
        requests.append(await count(picture(9)))
        assert await count() is None

    try:
        asyncio.run(test())
    finally:
        images.close()
