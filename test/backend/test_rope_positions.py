"""Rotary positions of prompts with images against transformers' `get_rope_index`."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support.vision_language import FAMILIES, vision_language_class

from lightllm.backend.rope_positions import end_of_images, prompt_positions, rope_delta
from lightllm.protocol.messages import ImageSpan

LAYOUTS: dict[str, list[int | tuple[int, int]]] = {
    # lengths of texts, (rows, columns) of images; a text is between any two images, as their marks always are
    "an image at the start": [(2, 3), 4],
    "an image at the end": [4, (2, 3)],
    "images between texts": [5, (3, 5), 7, (6, 2), 3],
    "small images": [2, (1, 1), 1, (4, 4), 1, (1, 9), 1],
    "a long text behind a large image": [1, (12, 10), 40],
}


def transformers_index(layout: list[int | tuple[int, int]]) -> tuple[np.ndarray, int]:
    """int64 [3, n], and the delta."""
    config_class, model_class = vision_language_class("qwen2_vl")
    with torch.device("meta"):
        model = model_class(config_class(**FAMILIES["qwen2_vl"])).model
    is_image = torch.tensor(
        [[k for part in layout for k in ([0] * part if isinstance(part, int) else [1] * part[0] * part[1])]]
    )
    grids = torch.tensor([(1, 2 * part[0], 2 * part[1]) for part in layout if not isinstance(part, int)])
    positions, delta = model.get_rope_index(torch.zeros_like(is_image), is_image, grids)
    return positions[:, 0].numpy(), int(delta)


@pytest.mark.parametrize("name", LAYOUTS)
def test_positions_of_any_part_of_a_prompt_and_of_what_follows_it_equal_transformers(name: str) -> None:
    images, start = [], 0
    for part in LAYOUTS[name]:
        if not isinstance(part, int):
            images.append(ImageSpan(start, part[0] * part[1], 0, (1, *part)))
        start += part if isinstance(part, int) else part[0] * part[1]
    expected, delta = transformers_index(LAYOUTS[name])
    assert rope_delta(images) == delta
    for first in range(start):
        for last in range(first + 1, start + 1, 1 + start // 30):
            assert (prompt_positions(images, first, last) == expected[:, first:last]).all()
    after = prompt_positions(images, start, start + 5)
    assert (after == np.arange(start, start + 5) + delta).all()
    assert (expected[:, end_of_images(images) :] == np.arange(end_of_images(images), start) + delta).all()


def test_images_without_a_grid_are_like_text() -> None:
    images = [ImageSpan(2, 6, 0)]
    assert rope_delta(images) == 0 and end_of_images(images) == 0
    assert (prompt_positions(images, 1, 9) == np.arange(1, 9)).all()
