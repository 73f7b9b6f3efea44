"""What Python callers give for an image: a Pillow image, the bytes of a file, a path or a URL."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from lightllm.errors import InvalidImage
from lightllm.images.source import Bitmap, FileUrl, ImageSource, openai_source

_URL = re.compile(r"data:|[a-z][a-z0-9+.-]{0,40}://", re.IGNORECASE)


def image_of(value: Any, field: str) -> ImageSource:
    """value: a text is a URL (http, https, data, file) if it looks like one, else a path; bytes are an encoded image. An
    `ImageSource` is one already. Raises `InvalidImage` naming the field."""
    if isinstance(value, ImageSource):
        return value
    if isinstance(value, bytes | bytearray | memoryview):
        return ImageSource(bytes(value), field)
    if isinstance(value, str) and _URL.match(value):
        return openai_source(value, field)
    if isinstance(value, str | os.PathLike):
        return ImageSource(FileUrl(Path(os.path.abspath(value)).as_uri()), field)
    from PIL import Image  # here: only models that see need it

    from lightllm.images.decode import bitmap

    if isinstance(value, Image.Image):
        return ImageSource(Bitmap(bitmap(value, field)), field)
    raise InvalidImage(
        f"{field} must be a Pillow image, bytes, a path or a URL, got {type(value).__name__}", param=field
    )
