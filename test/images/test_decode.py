"""Every kind of image becomes the RGB pixels that a person sees, or an error that says why not."""

import io

import numpy as np
import pytest
from PIL import Image
from support.drawn_images import BLUE, GREEN, RED, WHITE, encoded, halves, png_header

from lightllm.errors import InvalidImage
from lightllm.images.decode import MAX_JPEG_SCANS, check, decode, probe

LIMIT = 1_000_000


def corners(data: bytes) -> tuple[tuple[int, ...], ...]:
    """Colours at the left and at the right edge, half way down."""
    image = decode(data, LIMIT)
    assert image.mode == "RGB"
    middle = image.height // 2
    return image.getpixel((0, middle)), image.getpixel((image.width - 1, middle))  # type: ignore[return-value]


def near(found: tuple[tuple[int, ...], ...], wanted: tuple[tuple[int, ...], ...]) -> bool:
    return np.abs(np.subtract(found, wanted)).max() <= 3


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_every_format_is_read(format: str) -> None:
    data = encoded(halves(), format, **({"quality": 100, "subsampling": 0} if format == "JPEG" else {}))
    assert probe(data, LIMIT, "here") == check(data, LIMIT, "here") == decode(data, LIMIT).size == (40, 20)
    tolerance = (RED, BLUE)
    assert near(corners(data), tolerance) or format == "WEBP"


@pytest.mark.parametrize(("mode", "wanted"), [("L", (76, 29)), ("LA", (76, 29)), ("1", (255, 0))])
def test_grey_stays_grey(mode: str, wanted: tuple[int, int]) -> None:
    if mode == "1":
        image = Image.new("1", (40, 20))
        image.paste(1, (0, 0, 20, 20))
    else:
        image = halves(mode="L").convert(mode)
    assert near(corners(encoded(image)), tuple((value,) * 3 for value in wanted))


def test_sixteen_bits_of_grey_keep_their_brightness() -> None:
    samples = np.zeros((20, 40), np.uint16)
    samples[:, :20] = 0x8000
    assert corners(encoded(Image.fromarray(samples))) == ((128,) * 3, (0,) * 3)
    assert corners(encoded(Image.fromarray(samples), "TIFF")) == ((128,) * 3, (0,) * 3)


def test_cmyk_of_printers_has_the_colours_of_the_original() -> None:
    assert near(corners(encoded(halves(mode="CMYK"), "JPEG", quality=100, subsampling=0)), (RED, BLUE))
    assert near(corners(encoded(halves(mode="CMYK"), "TIFF")), (RED, BLUE))


def test_a_palette_gives_its_colours() -> None:
    assert corners(encoded(halves(mode="P"))) == (RED, BLUE)


@pytest.mark.parametrize("kind", ["RGBA", "palette", "key", "half"])
def test_what_is_transparent_is_white(kind: str) -> None:
    layer = halves(mode="RGBA")
    if kind == "half":
        layer.putalpha(128)
        assert near(corners(encoded(layer)), ((255, 127, 127), (127, 127, 255)))
        return
    layer.paste((0, 255, 0, 0), (0, 0, 20, 20))
    if kind == "RGBA":
        data = encoded(layer)
    elif kind == "palette":
        data = encoded(halves(mode="P"), transparency=halves(mode="P").getpixel((0, 0)))
    else:
        data = encoded(halves(), transparency=RED)
    assert corners(data) == (WHITE, BLUE)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_the_camera_was_held_in_any_way_and_the_image_is_upright(orientation: int, format: str) -> None:
    """The upright image is red on the left, blue on the right, green at the bottom right; it is stored turned."""
    upright = halves()
    upright.paste(GREEN, (30, 10, 40, 20))
    back = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # orientation -> Transpose that undoes the upright one
    stored = upright if orientation == 1 else upright.transpose(Image.Transpose(back[orientation]))
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = (
        {"lossless": True}
        if format == "WEBP"
        else {"quality": 100, "subsampling": 0}
        if format == "JPEG"
        else {}
    )
    data = encoded(stored, format, exif=exif, **options)
    assert probe(data, LIMIT, "here") == check(data, LIMIT, "here") == (40, 20)
    image = decode(data, LIMIT)
    assert image.size == (40, 20)
    difference = np.abs(np.asarray(image, np.int16) - np.asarray(upright, np.int16))
    assert np.median(difference) <= 2 and (difference > 60).mean() < 0.1


def test_the_orientation_of_a_png_may_follow_its_pixels() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(halves(), exif=exif)
    start = data.index(b"eXIf") - 4
    end = start + 12 + int.from_bytes(data[start : start + 4], "big")
    moved = data[:start] + data[end:-12] + data[start:end] + data[-12:]
    for png in (data, moved):
        assert probe(png, LIMIT, "here") == check(png, LIMIT, "here") == decode(png, LIMIT).size == (20, 40)


def test_the_header_tells_the_size_of_an_image_whose_pixels_are_missing() -> None:
    assert probe(png_header(700, 900), LIMIT, "here") == (700, 900)


def test_a_broken_exif_block_leaves_the_image_as_it_is() -> None:
    data = encoded(halves(), "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + b"\x12\x01\x03\0" * 4)
    assert probe(data, LIMIT, "here") == decode(data, LIMIT).size == (40, 20)


@pytest.mark.parametrize("format", ["GIF", "PNG", "WEBP"])
def test_of_an_animation_the_first_frame_counts(format: str) -> None:
    frames = [Image.new("RGB", (40, 20), colour) for colour in (BLUE, RED, GREEN)]
    data = encoded(frames[0], format, save_all=True, append_images=frames[1:], duration=50)
    assert near(corners(data), (BLUE, BLUE))


@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (5000, 1), (7, 3)])
@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "GIF"])
def test_extreme_sizes_are_images_too(size: tuple[int, int], format: str) -> None:
    data = encoded(Image.new("RGB", size, RED), format)
    assert probe(data, LIMIT, "here") == check(data, LIMIT, "here") == decode(data, LIMIT).size == size


@pytest.mark.parametrize("size", [(30_000, 30_000), (1001, 1000), (2**31 - 1, 1)])
def test_a_bomb_is_refused_by_its_header(size: tuple[int, int]) -> None:
    for reader in (probe, check, decode):
        with pytest.raises(
            InvalidImage, match=r"^here: the image has .* pixels.*--max_image_pixels"
        ) as caught:
            reader(png_header(*size), LIMIT, "here")
        assert caught.value.param == "here"


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_a_truncated_file_is_refused(format: str) -> None:
    noise = Image.fromarray(np.random.default_rng(7).integers(0, 256, (64, 64, 3), np.uint8))
    data = encoded(noise, format)
    for length in (len(data) * 3 // 4, len(data) // 3, 30):
        for reader in (check, decode):
            with pytest.raises(InvalidImage, match="broken or cut short|is none of"):
                reader(data[:length], LIMIT, "here")


@pytest.mark.parametrize(
    ("data", "hint"),
    [
        (b"", "but empty"), (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "but SVG"),
        (b"<?xml version='1.0'?><!DOCTYPE svg><svg/>", "but SVG"), (b"<html>not found</html>", "but a text"),
        (b'{"error": 1}', "but a text"), (b"%PDF-1.7 ...", "$"), (b"\x00" * 100, "$"), (b"GIF89a", ""),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "$"), (b"P6 2 2 255\n" + b"x" * 12, "$"),
    ],
)  # fmt: skip
def test_what_is_no_image_is_refused_whatever_it_calls_itself(data: bytes, hint: str) -> None:
    for reader in (probe, check, decode):
        with pytest.raises(InvalidImage, match=f"none of JPEG, PNG, WEBP, GIF, BMP, TIFF.*{hint}|broken"):
            reader(data, LIMIT, "here")


def test_a_jpeg_of_thousands_of_scans_is_refused_before_it_takes_minutes() -> None:
    data = encoded(halves(), "JPEG", progressive=True)
    assert check(data, LIMIT, "here") == (40, 20)
    with pytest.raises(InvalidImage, match=f"scans, at most {MAX_JPEG_SCANS}"):
        check(data[:-2] + b"\xff\xda" * MAX_JPEG_SCANS + data[-2:], LIMIT, "here")


def test_samples_of_32_bits_are_refused_because_their_range_is_unknown() -> None:
    buffer = io.BytesIO()
    Image.fromarray(np.ones((4, 4), np.float32)).save(buffer, "TIFF")
    for reader in (check, decode):
        with pytest.raises(InvalidImage, match="32 bits a sample"):
            reader(buffer.getvalue(), LIMIT, "here")
