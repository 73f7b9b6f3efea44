"""Markers become ids of images, in the texts of every family."""

import re
from pathlib import Path

import pytest

from lightllm.errors import InvalidImage
from lightllm.images.layouts.layout import Layout
from lightllm.images.layouts.registry import LAYOUTS, VisionFolder
from lightllm.images.prompt import encode, place

FIELD = "multimodal_params.images"
IDS = {
    "<image>": 10, "<|vision_start|>": 11, "<|image_pad|>": 12, "<|vision_end|>": 13, "<img>": 14, "</img>": 15,
    "<IMG_CONTEXT>": 16, "<start_of_image>": 17, "<image_soft_token>": 18, "<end_of_image>": 19, "\n\n": 20,
}  # fmt: skip
BOS = 1


def tokenize(text: str, add_special_tokens: bool) -> list[int]:
    """Special tokens as in `IDS`, every other character by its code above 1000."""
    pieces = re.split("(" + "|".join(map(re.escape, IDS)) + ")", text)
    ids = [i for piece in pieces for i in ([IDS[piece]] if piece in IDS else [1000 + ord(c) for c in piece])]
    return [BOS, *ids] if add_special_tokens else ids


def chars(text: str) -> list[int]:
    return [1000 + ord(character) for character in text]


def layout(family: str, **config: object) -> Layout:
    return LAYOUTS[family](VisionFolder(Path(), config, {}, IDS.get))


LLAVA = layout("llava")
ORIGINAL = layout("llava", mm_vision_tower="openai/clip-vit-large-patch14-336")
QWEN = layout("qwen", visual={"image_start_id": 14})
QWEN2 = layout("qwen2_vl")
INTERN = layout("internvl_chat")
GEMMA = layout("gemma3")
AROUND = {
    "llava": (LLAVA, [], []), "original": (ORIGINAL, [], []), "qwen": (QWEN, [14], [15]), "qwen2": (QWEN2, [11], [13]),
    "intern": (INTERN, [14], [15]), "gemma": (GEMMA, [20, 17], [19, 20]),
}  # fmt: skip
"""Layout, ids in front of each image, ids behind it."""


@pytest.mark.parametrize("name", AROUND)
@pytest.mark.parametrize("text", ["{}", "a{}b", "{}{}", "a{}b{}c", "{}a{}{}"])
@pytest.mark.parametrize("bos", [True, False])
def test_every_image_stands_in_the_place_of_its_marker(name: str, text: str, bos: bool) -> None:
    used, before, behind = AROUND[name]
    images = [(2**24 + 100 * i, 3 + i) for i in range(text.count("{}"))]
    placed = place(encode(text.replace("{}", used.marker), used, tokenize, bos), used, images, FIELD)
    expected = [BOS] if bos else []
    starts = []
    for index, piece in enumerate(text.split("{}")):
        if index:
            first, tokens = images[index - 1]
            starts.append(len(expected) + len(before))
            expected += [*before, *range(first, first + tokens), *behind]
        expected += chars(piece)
    assert placed.ids == expected and placed.starts == starts


def test_a_prompt_without_images_is_as_it_was() -> None:
    for used, _, _ in AROUND.values():
        ids = encode("no image", used, tokenize, True)
        assert ids == [BOS, *chars("no image")] and place(ids, used, [], FIELD) == (ids, [])


def test_the_name_between_qwen_vls_tags_gives_way_to_the_image() -> None:
    text = "Picture 1: <img>https://images.example/a.png</img>\nPicture 2: <img>\n</img>"
    placed = place(encode(text, QWEN, tokenize, False), QWEN, [(2**24, 2), (2**24 + 9, 1)], FIELD)
    assert placed.ids == [
        *chars("Picture 1: "), 14, 2**24, 2**24 + 1, 15, *chars("\nPicture 2: "), 14, 2**24 + 9, 15
    ]  # fmt: skip
    # ids that a client has tokenized itself still hold the name
    ids = tokenize("<img>a.png</img>", False)
    assert place(ids, QWEN, [(2**24, 1)], FIELD).ids == [14, 2**24, 15]


@pytest.mark.parametrize("name", AROUND)
@pytest.mark.parametrize(
    ("markers", "images", "message"),
    [
        (2, 1, "the prompt has 2 markers {}, but 1 image came with it"), (0, 1, "has 0 markers {}, but 1 image came"),
        (1, 2, "the prompt has 1 marker {}, but 2 images came with it"), (3, 0, "has 3 markers {}, but 0 images came"),
    ],
)  # fmt: skip
def test_markers_and_images_that_are_not_as_many_are_both_counted(
    name: str, markers: int, images: int, message: str
) -> None:
    used = AROUND[name][0]
    ids = encode("x".join([used.marker] * markers), used, tokenize, True)
    with pytest.raises(InvalidImage, match=re.escape(message.format(used.marker))) as caught:
        place(ids, used, [(2**24, 2)] * images, FIELD)
    assert caught.value.param == FIELD and caught.value.status == 400
