"""What a body may say of an image, in both shapes."""

from typing import Any

import pytest

from lightllm.errors import InvalidImage
from lightllm.images.source import (
    MAX_URL,
    Base64Text,
    FileUrl,
    ImageSource,
    RemoteUrl,
    Size,
    native_sources,
    openai_source,
)  # fmt: skip

FIELD = "multimodal_params.images"


def test_lightllms_shapes_are_taken() -> None:
    images = [
        {"type": "base64", "data": "AAAA"},
        {"type": "url", "data": "https://images.example/a.png", "detail": "high"},
        {"type": "image_size", "data": [640, 480]},
        {"type": "url", "data": "data:image/png;base64,BBBB"},
        {"type": "base64", "data": "data:image/png;base64,CCCC"},
        {"type": "url", "data": "FILE:///a.png"},
    ]
    assert native_sources(images) == [
        ImageSource(Base64Text("AAAA"), f"{FIELD}.0"),
        ImageSource(RemoteUrl("https://images.example/a.png"), f"{FIELD}.1", "high"),
        ImageSource(Size(640, 480), f"{FIELD}.2"),
        ImageSource(Base64Text("BBBB"), f"{FIELD}.3"),
        ImageSource(Base64Text("CCCC"), f"{FIELD}.4"),
        ImageSource(FileUrl("FILE:///a.png"), f"{FIELD}.5"),
    ]
    assert native_sources(None) == native_sources([]) == []


def test_openais_shapes_are_taken() -> None:
    field = "messages.0.content.1.image_url"
    url = "HTTP://images.example/a.png"
    assert openai_source(url, field) == ImageSource(RemoteUrl(url), field)
    assert openai_source({"url": url, "detail": "low"}, field) == ImageSource(RemoteUrl(url), field, "low")
    assert openai_source({"url": url, "detail": None, "format": "image/png"}, field).detail == "auto"
    assert openai_source("data:;base64,AAAA", field).content == Base64Text("AAAA")


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ({"type": "url"}, f"{FIELD} must be a list"), ("a.png", f"{FIELD} must be a list"), ([7], rf"{FIELD}\.0 must be an object"),
        (["https://images.example/"], rf"{FIELD}\.0 must be an object"), ([{}], rf"{FIELD}\.0\.type must be one of"),
        ([{"type": "video", "data": "x"}], rf"{FIELD}\.0\.type must be one of base64, url, image_size, got 'video'"),
        ([{"type": ["url"], "data": "x"}], r"\.type must be one of"), ([{"type": "url"}], r"\.data must be a text, got None"),
        ([{"type": "base64", "data": ""}], r"\.data must be a text"), ([{"type": "base64", "data": 7}], r"\.data must be a text"),
        ([{"type": "url", "data": "a.png"}], "must be an http, https, data or file URL"),
        ([{"type": "url", "data": "ftp://a/b"}], "must be an http, https, data or file URL"),
        ([{"type": "url", "data": "javascript:1"}], "must be an http, https, data or file URL"),
        ([{"type": "url", "data": "data:image/png,AAAA"}], "a data URL must read"),
        ([{"type": "url", "data": "data:image/png;base64"}], "a data URL must read"),
        ([{"type": "url", "data": "http://a/" + "b" * MAX_URL}], f"characters, at most {MAX_URL}"),
        ([{"type": "url", "data": "http://a/", "detail": "ultra"}], r"\.detail must be one of auto, low, high"),
        ([{"type": "url", "data": "http://a/", "size": 3}], "has no field 'size'"),
        ([{"type": "image_size", "data": [0, 5]}], r"must be \[width, height\]"),
        ([{"type": "image_size", "data": [5]}], r"must be \[width, height\]"),
        ([{"type": "image_size", "data": [1 << 30, 5]}], r"must be \[width, height\]"),
        ([{"type": "image_size", "data": [5.0, 5]}], r"must be \[width, height\]"),
        ([{"type": "image_size", "data": [True, 5]}], r"must be \[width, height\]"),
        ([{"type": "image_size", "data": "5x5"}], r"must be \[width, height\]"),
    ],
)  # fmt: skip
def test_a_malformed_entry_is_named_with_what_was_expected(images: Any, message: str) -> None:
    with pytest.raises(InvalidImage, match=message) as caught:
        native_sources(images)
    assert caught.value.status == 400 and (caught.value.param or "").startswith(FIELD)
    assert len(caught.value.message) < 300


def test_a_malformed_entry_of_any_size_is_shown_by_its_beginning() -> None:
    class Part:
        shown = 0

        def __repr__(self) -> str:
            Part.shown += 1
            return "part"

    with pytest.raises(InvalidImage, match=r"width, height.*got \[part, part"):
        native_sources([{"type": "image_size", "data": [Part()] * 1000}])
    assert Part.shown < 10


@pytest.mark.parametrize(
    "value", [None, 7, [], {}, {"url": None}, {"url": 3}, {"url": "x"}, {"uri": "http://a/"}, ""]
)
def test_a_malformed_part_is_named(value: Any) -> None:
    with pytest.raises(InvalidImage, match=r"^messages\.3\.image_url"):
        openai_source(value, "messages.3.image_url")
