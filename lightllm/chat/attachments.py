"""Images that a message names: a word that is an address or a file with an image's suffix, or `@` before any address or file.

A file goes along as a data URL; an address goes to the server as it is, which fetches it by its own rules. The word leaves
the text, and the image takes its place.
"""

from __future__ import annotations

import base64
import mimetypes
import re
from pathlib import Path
from typing import Any

from lightllm.chat.conversation import Content
from lightllm.errors import InvalidImage

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff")
MAX_IMAGE_BYTES = 20 * 2**20
_WORD = re.compile(
    r"""(?<!\S)(?P<marked>@?)(?:"(?P<double>[^"\n]+)"|'(?P<single>[^'\n]+)'|(?P<plain>\S+))(?!\S)"""
)


def content_of(text: str) -> Content:
    """Raises `InvalidImage` for a file that is named as an image and cannot be read."""
    parts: list[dict[str, Any]] = []
    taken = 0
    for word in _WORD.finditer(text):
        source = word["double"] or word["single"] or word["plain"]
        url = _image_url(source, bool(word["marked"]))
        if url is not None:
            parts += [
                *_text_part(text[taken : word.start()]),
                {"type": "image_url", "image_url": {"url": url}},
            ]
            taken = word.end()
    return [*parts, *_text_part(text[taken:])] if parts else text


def _image_url(source: str, marked: bool) -> str | None:
    """None: the word is a word."""
    if source.startswith("data:image/"):
        return source
    if re.match(r"https?://\S", source):
        address = source.partition("?")[0].partition("#")[0]
        return source if marked or address.lower().endswith(SUFFIXES) else None
    path = Path(source).expanduser()
    try:
        is_file = path.is_file()
    except (OSError, ValueError):  # too long for a name, or not one
        return None
    if not marked and (not is_file or path.suffix.lower() not in SUFFIXES):
        return None
    if not is_file:
        # @someone is a name, @folder/picture.png was meant to be one
        if "/" not in source and path.suffix.lower() not in SUFFIXES:
            return None
        raise InvalidImage(f"there is no file {source}")
    return _data_url(path)


def _data_url(path: Path) -> str:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InvalidImage(f"{path} cannot be read: {error}") from error
    if len(data) > MAX_IMAGE_BYTES:
        raise InvalidImage(f"{path} has {len(data)} bytes, at most {MAX_IMAGE_BYTES}")
    kind = mimetypes.guess_type(path.name)[0] or "image/png"
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def _text_part(text: str) -> list[dict[str, Any]]:
    return [{"type": "text", "text": text.strip()}] if text.strip() else []
