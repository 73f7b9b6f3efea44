"""Encoded images -> their size, or RGB pixels, by Pillow.

`probe` reads the header, `check` decodes once to know that it can be done, `decode` gives the pixels that a model sees:
the first frame of an animation, upright (EXIF orientation), alpha over white, 16-bit grey scaled to 8. Width and height
are always those of the upright image. `bitmap` takes an image that is open already. All four block.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from lightllm.errors import InvalidImage

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
"""All that is decoded, by the first bytes and not by a name or media type. Fewer decoders, fewer faults for hostile files to find."""
MAX_JPEG_SCANS = 100
"""Encoders write up to 10. Each takes as long as the whole image, however few bytes it has."""
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE, 8: Image.Transpose.ROTATE_90,
}  # fmt: skip
"""EXIF orientation -> what makes the image upright; from 5 on, width and height change places."""
_SIXTEEN_BITS = ("I;16", "I;16B", "I;16L")
_WHITE = (255, 255, 255, 255)


def probe(data: bytes, max_pixels: int, field: str) -> tuple[int, int]:
    """(width, height), from the header alone. Raises `InvalidImage` for what is no image, or too large."""
    with _opened(data, max_pixels, field) as image:
        if image.format == "PNG" and _tells_more_behind_pixels(data):
            image.load()
        return _upright_size(image, image.size)


def check(data: bytes, max_pixels: int, field: str) -> tuple[int, int]:
    """As `probe`, of an image that can be decoded to its end. A JPEG is decoded at an eighth of its size, which is faster."""
    with _opened(data, max_pixels, field) as image:
        _refuse_depth(image, field)
        size = image.size
        image.draft(None, (max(1, image.width // 8), max(1, image.height // 8)))
        image.load()
        return _upright_size(image, size)


def decode(data: bytes, max_pixels: int, field: str = "image") -> Image.Image:
    """The image in mode RGB. Raises `InvalidImage`."""
    with _opened(data, max_pixels, field) as image:
        return _seen(image, field)


def bitmap(image: Image.Image, field: str) -> bytes:
    """A BMP file of what a model sees of an image that the caller has opened. Raises `InvalidImage`."""
    file = io.BytesIO()
    try:
        _seen(image, field).save(file, "BMP")
    except InvalidImage:
        raise
    except Exception as error:  # it may not be decoded yet, and Pillow's decoders raise nearly anything
        raise _broken(field) from error
    return file.getvalue()


def _seen(image: Image.Image, field: str) -> Image.Image:
    """Upright, in mode RGB."""
    _refuse_depth(image, field)
    image.load()  # which makes a TIFF upright
    turn = _TURNS.get(_orientation(image))
    return _rgb(image if turn is None else image.transpose(turn))


@contextmanager
def _opened(data: bytes, max_pixels: int, field: str) -> Iterator[Image.Image]:
    """The image with its header read; whatever Pillow raises until the end becomes an `InvalidImage`."""
    if data[:2] == b"\xff\xd8" and (scans := data.count(b"\xff\xda")) > MAX_JPEG_SCANS:
        raise InvalidImage(f"{field}: a JPEG of {scans} scans, at most {MAX_JPEG_SCANS}", param=field)
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            width, height = image.size
            if width * height > max_pixels:
                raise InvalidImage(
                    f"{field}: the image has {width} x {height} pixels, at most {max_pixels} (--max_image_pixels)",
                    param=field,
                )
            yield image
    except Image.DecompressionBombError as error:
        raise InvalidImage(
            f"{field}: the image has more than {max_pixels} pixels (--max_image_pixels)", param=field
        ) from error
    except UnidentifiedImageError as error:
        raise InvalidImage(f"{field} is none of {', '.join(FORMATS)}{_guess(data)}", param=field) from error
    except InvalidImage:
        raise
    except Exception as error:  # what a hostile file makes Pillow's decoders raise is not limited to OSError
        raise _broken(field) from error


def _broken(field: str) -> InvalidImage:
    return InvalidImage(f"{field}: the image is broken or cut short", param=field)


def _guess(data: bytes) -> str:
    """What it is instead, where that helps."""
    head = data[:256].lstrip().lower()
    if not data:
        return ", but empty"
    if b"<svg" in head or head.startswith(b"<?xml"):
        return ", but SVG"
    return ", but a text" if head.startswith((b"<", b"{")) else ""


def _upright_size(image: Image.Image, size: tuple[int, int]) -> tuple[int, int]:
    """`size`: as it was told when the image was opened; that of a TIFF is upright."""
    turned = image.format != "TIFF" and _orientation(image) >= 5
    return size[::-1] if turned else size


def _tells_more_behind_pixels(png: bytes) -> bool:
    """Whether chunks that may hold the orientation follow the pixels of a PNG."""
    pixels = png.find(b"IDAT")
    return any(png.find(chunk, pixels) >= 0 for chunk in (b"eXIf", b"iTXt", b"tEXt", b"zTXt"))


def _orientation(image: Image.Image) -> int:
    """1 to 8; 1 (upright) also where the EXIF data is broken or says something else."""
    try:
        # not a PNG's own method, which decodes the pixels to look behind them
        exif = Image.Image.getexif(image) if image.format == "PNG" else image.getexif()
        told = exif.get(ExifTags.Base.Orientation)
    except Exception:  # the pixels may be sound all the same
        return 1
    return told if isinstance(told, int) and told in _TURNS else 1


def _refuse_depth(image: Image.Image, field: str) -> None:
    """Samples of 32 bits have no agreed range: they are measurements, not colours."""
    if image.mode in ("I", "F"):
        raise InvalidImage(f"{field}: images of 32 bits a sample are not taken", param=field)


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode in _SIXTEEN_BITS:
        samples = np.asarray(image)
        grey = (samples >> 8).astype(np.uint8)
        grey[samples == image.info.get("transparency", -1)] = 255
        return Image.fromarray(grey).convert("RGB")
    if not image.has_transparency_data:
        return image.convert("RGB")
    layer = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", layer.size, _WHITE), layer).convert("RGB")
