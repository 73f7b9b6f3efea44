"""Where an image of a request is: one type for LightLLM's `multimodal_params.images` and OpenAI's `image_url` parts."""

from __future__ import annotations

import dataclasses
import reprlib
from typing import Any, Literal, NamedTuple

from lightllm.errors import InvalidImage

Detail = Literal["auto", "low", "high"]
DETAILS: tuple[Detail, ...] = ("auto", "low", "high")
MAX_URL = 8192
"""Characters of an http, https or file URL."""
MAX_SIDE = 1 << 20
"""Pixels, of a side that is given without an image."""
_NATIVE_TYPES = ("base64", "url", "image_size")
_SHOWN = 60
"""Characters of a wrong value that an error repeats."""


class Base64Text(NamedTuple):
    """Decoded by `intake`, which does it outside the event loop."""

    text: str


class RemoteUrl(NamedTuple):
    url: str


class FileUrl(NamedTuple):
    url: str


class Bitmap(NamedTuple):
    """An image that was decoded already: a BMP file of its pixels, which only --max_image_pixels bounds."""

    data: bytes


class Size(NamedTuple):
    """An image that is only counted: its size stands for it."""

    width: int
    height: int


@dataclasses.dataclass(frozen=True, slots=True)
class ImageSource:
    content: Base64Text | RemoteUrl | FileUrl | Bitmap | Size | bytes
    field: str
    """Where in the body it stands, for errors: "multimodal_params.images.0"."""
    detail: Detail = "auto"


def native_sources(images: Any, field: str = "multimodal_params.images") -> list[ImageSource]:
    """`[{"type": "base64" | "url" | "image_size", "data": ...}]`; `detail` may stand beside. null is no image.

    "image_size" has data [width, height]. Raises `InvalidImage` naming the entry.
    """
    if images is None:
        return []
    if not isinstance(images, list):
        raise InvalidImage(f"{field} must be a list, got {_shown(images)}", param=field)
    return [_native_source(image, f"{field}.{index}") for index, image in enumerate(images)]


def openai_source(value: Any, field: str) -> ImageSource:
    """What an image part has under `image_url` or `image`: a URL, or `{"url": URL, "detail": ...}`.

    The URL is http, https, data or file. Raises `InvalidImage`.
    """
    if isinstance(value, str):
        return ImageSource(_of_url(value, field), field)
    if not isinstance(value, dict):
        raise InvalidImage(f"{field} must be a URL or an object with a url, got {_shown(value)}", param=field)
    # some clients tell the media type as well; the bytes say it themselves
    _refuse_others(value, ("url", "detail", "format"), field)
    url = value.get("url")
    if not isinstance(url, str):
        raise InvalidImage(f"{field}.url must be a text, got {_shown(url)}", param=f"{field}.url")
    return ImageSource(_of_url(url, f"{field}.url"), field, _detail(value, field))


def _native_source(image: Any, field: str) -> ImageSource:
    if not isinstance(image, dict):
        raise InvalidImage(
            f'{field} must be an object like {{"type": "url", "data": "https://..."}}, got {_shown(image)}',
            param=field,
        )
    _refuse_others(image, ("type", "data", "detail"), field)
    kind, data = image.get("type"), image.get("data")
    if kind not in _NATIVE_TYPES:
        raise InvalidImage(
            f"{field}.type must be one of {', '.join(_NATIVE_TYPES)}, got {_shown(kind)}",
            param=f"{field}.type",
        )
    detail = _detail(image, field)
    if kind == "image_size":
        return ImageSource(_size(data, f"{field}.data"), field, detail)
    if not isinstance(data, str) or not data:
        raise InvalidImage(f"{field}.data must be a text, got {_shown(data)}", param=f"{field}.data")
    if kind == "base64" and not data.startswith("data:"):
        return ImageSource(Base64Text(data), field, detail)
    return ImageSource(_of_url(data, f"{field}.data"), field, detail)


def _of_url(url: str, field: str) -> Base64Text | RemoteUrl | FileUrl:
    scheme = url[:8].partition(":")[0].lower()
    if scheme == "data":
        head, comma, text = url.partition(",")
        if not comma or not head.lower().endswith(";base64"):
            raise InvalidImage(
                f"{field}: a data URL must read data:image/...;base64,..., got {_shown(url)}", param=field
            )
        return Base64Text(text)
    if scheme not in ("http", "https", "file"):
        raise InvalidImage(
            f"{field} must be an http, https, data or file URL, got {_shown(url)}", param=field
        )
    if len(url) > MAX_URL:
        raise InvalidImage(f"{field} has {len(url)} characters, at most {MAX_URL}", param=field)
    return FileUrl(url) if scheme == "file" else RemoteUrl(url)


def _size(data: Any, field: str) -> Size:
    whole = isinstance(data, list) and len(data) == 2 and all(type(side) is int for side in data)
    if not whole or not all(0 < side <= MAX_SIDE for side in data):
        raise InvalidImage(
            f"{field} must be [width, height], both from 1 to {MAX_SIDE}, got {_shown(data)}", param=field
        )
    return Size(*data)


def _detail(value: dict[str, Any], field: str) -> Detail:
    detail = value.get("detail")
    if detail is None:
        return "auto"
    if detail not in DETAILS:
        raise InvalidImage(
            f"{field}.detail must be one of {', '.join(DETAILS)}, got {_shown(detail)}",
            param=f"{field}.detail",
        )
    return detail


def _refuse_others(value: dict[str, Any], known: tuple[str, ...], field: str) -> None:
    for name in value:
        if name not in known:
            raise InvalidImage(
                f"{field} has no field {name[:_SHOWN]!r}, only {', '.join(known)}", param=field
            )


def _shown(value: Any) -> str:
    """A list or an object of any size costs no more than its beginning."""
    text = repr(value[:_SHOWN]) if isinstance(value, str) else reprlib.repr(value)
    return text if len(text) <= _SHOWN + 2 else f"{text[:_SHOWN]}..."
