"""Images as Python callers have them: a Pillow image is seen as its file would be."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import ExifTags, Image
from support.drawn_images import encoded, halves

from lightllm.errors import InvalidImage
from lightllm.images.blocking_intake import BlockingIntake
from lightllm.images.decode import decode
from lightllm.images.limits import ImageLimits
from lightllm.images.objects import image_of
from lightllm.images.source import Bitmap, FileUrl, ImageSource, RemoteUrl

MOST = 10_000
LIMITS = ImageLimits(1 << 20, MOST, 4, 1.0, None, "/")


def turned() -> bytes:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    return encoded(halves(), "JPEG", exif=exif, quality=95)


FILES = {
    **{mode: encoded(halves(mode=mode)) for mode in ("RGB", "L", "P", "1", "LA")},
    "transparent": encoded(Image.new("RGBA", (7, 5), (200, 100, 0, 60))),
    "16 bits": encoded(Image.fromarray(np.arange(35, dtype=np.uint16).reshape(5, 7) * 1800)),
    "cmyk": encoded(halves(mode="CMYK"), "TIFF"),
    "exif": turned(),
}


@pytest.mark.parametrize("name", FILES)
def test_a_pillow_image_is_what_a_model_sees_of_its_file(name: str) -> None:
    data = FILES[name]
    source = image_of(Image.open(io.BytesIO(data)), "image")
    assert isinstance(source.content, Bitmap)
    seen, expected = decode(source.content.data, MOST), decode(data, MOST)
    assert seen.size == expected.size and seen.tobytes() == expected.tobytes()


@pytest.mark.parametrize(
    ("value", "content"),
    [
        (b"abc", b"abc"),
        (memoryview(b"abc"), b"abc"),
        ("https://example.com/x.png", RemoteUrl("https://example.com/x.png")),
        ("FILE:///x.png", FileUrl("FILE:///x.png")),
        ("/a b/ö.png", FileUrl("file:///a%20b/%C3%B6.png")),
        (Path("/a/../b%20.png"), FileUrl("file:///b%2520.png")),
    ],
)
def test_bytes_paths_and_urls_are_told_apart(value: Any, content: Any) -> None:
    source = image_of(value, "image.0")
    assert source == ImageSource(content, "image.0")
    assert image_of(source, "elsewhere") is source


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (None, "image must be a Pillow image, bytes, a path or a URL, got NoneType"),
        ("ftp://example.com/x.png", "image must be an http, https, data or file URL"),
        ("data:image/png,abc", "a data URL must read"),
        (Image.new("I", (3, 3)), "image: images of 32 bits a sample are not taken"),
        (Image.open(io.BytesIO(encoded(halves())[:60])), "image: the image is broken or cut short"),
    ],
)
def test_what_is_no_image_is_named(value: Any, words: str) -> None:
    with pytest.raises(InvalidImage) as raised:
        image_of(value, "image")
    assert words in str(raised.value)


def test_only_the_pixels_of_a_pillow_image_are_bounded() -> None:
    limits = ImageLimits(500, MOST, 4, 1.0, None, None)
    intake = BlockingIntake(limits)
    try:
        large, larger = Image.new("RGB", (100, 99)), Image.new("RGB", (100, 101))
        (loaded,) = intake.run(lambda taking: taking.load([image_of(large, "image")]))
        assert (loaded.width, loaded.height) == large.size
        with pytest.raises(InvalidImage, match="100 x 101 pixels, at most 10000"):
            intake.run(lambda taking: taking.load([image_of(larger, "image")]))
        with pytest.raises(InvalidImage, match="at most 500"):
            intake.run(lambda taking: taking.load([ImageSource(bytes(501), "image")]))
    finally:
        intake.close()
