"""Our own preprocessing gives the pixels that the models' descriptions say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from lightllm.errors import InvalidModel
from lightllm.models.vision.preprocess import ClipPreprocess, load_preprocessor

CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
BICUBIC = Image.Resampling.BICUBIC
INTERNVL: dict[str, Any] = {
    "model_type": "internvl_chat", "force_image_size": 28, "downsample_ratio": 0.5, "max_dynamic_patch": 12,
    "llm_config": {"hidden_size": 48},
    "vision_config": {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4,
                      "image_size": 28, "patch_size": 7},
}  # fmt: skip
QWEN_VL = {
    "model_type": "qwen",
    "visual": {"width": 32, "layers": 1, "heads": 4, "mlp_ratio": 2.0, "output_dim": 256, "patch_size": 14, "image_size": 56},
}  # fmt: skip
LLAVA = {
    "model_type": "llava", "mm_vision_tower": "openai/clip-vit-large-patch14-336", "mm_projector_type": "mlp2x_gelu",
    "hidden_size": 48, "image_aspect_ratio": "pad",
}  # fmt: skip


def random_image(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8))


def write(folder: Path, config: dict[str, Any]) -> str:
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


def values(image: Image.Image, mean: tuple[float, ...], std: tuple[float, ...]) -> torch.Tensor:
    """(value / 255 - mean) / std, colours first."""
    normalised = (np.asarray(image).astype(np.float64) / 255 - np.array(mean)) / np.array(std)
    return torch.from_numpy(normalised).permute(2, 0, 1).float()


@pytest.mark.parametrize(
    ("size", "grid"),
    [((30, 30), (1, 1)), ((300, 300), (3, 3)), ((60, 27), (2, 1)), ((400, 200), (4, 2)), ((100, 300), (2, 6)),
     ((27, 100), (1, 4)), ((1, 300), (1, 12)), ((1000, 10), (12, 1))],
)  # fmt: skip
def test_internvl_cuts_an_image_into_the_grid_nearest_to_its_proportions(
    tmp_path: Path, size: tuple[int, int], grid: tuple[int, int]
) -> None:
    """With a thumbnail behind more than one tile, from left to right and from top to bottom."""
    preprocess, image = load_preprocessor(write(tmp_path, INTERNVL)), random_image(*size)
    columns, rows = grid
    whole = image.resize((28 * columns, 28 * rows), BICUBIC)
    boxes = [(28 * x, 28 * y, 28 * x + 28, 28 * y + 28) for y in range(rows) for x in range(columns)]
    tiles = [whole.crop(box) for box in boxes] + ([image.resize((28, 28), BICUBIC)] if len(boxes) > 1 else [])
    expected = torch.stack([values(tile, *IMAGENET) for tile in tiles])
    torch.testing.assert_close(preprocess(image).values, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", [(300, 300), (60, 27), (113, 290), (57, 43), (91, 33)])
def test_internvl_cuts_images_as_the_processor_of_its_conversion_does(
    tmp_path: Path, size: tuple[int, int]
) -> None:
    from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil

    image, (mean, std) = random_image(*size), IMAGENET
    theirs = GotOcr2ImageProcessorPil(
        size={"height": 28, "width": 28}, crop_to_patches=True, max_patches=12, image_mean=mean, image_std=std
    )(images=[image], return_tensors="pt")["pixel_values"]
    pixels = load_preprocessor(write(tmp_path, INTERNVL))(image)
    torch.testing.assert_close(pixels.values, theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("fields", "max_tiles", "count"),
    [({}, 1, 1), ({}, 4, 5), ({"dynamic_image_size": False}, None, 1), ({"use_thumbnail": False}, None, 9),
     ({"max_dynamic_patch": 4}, 9, 5)],
)  # fmt: skip
def test_internvl_cuts_no_more_tiles_than_config_and_request_allow(
    tmp_path: Path, fields: dict[str, Any], max_tiles: int | None, count: int
) -> None:
    preprocess = load_preprocessor(write(tmp_path, {**INTERNVL, **fields}))
    assert preprocess(random_image(300, 300), max_tiles).values.shape == (count, 3, 28, 28)


@pytest.mark.parametrize("size", [(57, 43), (1, 300), (56, 56)])
def test_qwen_vl_stretches_every_image_to_one_size(tmp_path: Path, size: tuple[int, int]) -> None:
    image = random_image(*size)
    expected = values(image.resize((56, 56), BICUBIC), *CLIP)[None]
    pixels = load_preprocessor(write(tmp_path, QWEN_VL))(image)
    torch.testing.assert_close(pixels.values, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", [(57, 43), (43, 57)])
def test_original_llava_pads_images_to_squares_in_the_colour_of_the_mean(
    tmp_path: Path, size: tuple[int, int]
) -> None:
    image, side = random_image(*size), max(size)
    square = Image.new("RGB", (side, side), tuple(int(255 * colour) for colour in CLIP[0]))
    square.paste(image, ((side - size[0]) // 2, (side - size[1]) // 2))
    expected = values(square.resize((336, 336), BICUBIC), *CLIP)[None]
    pixels = load_preprocessor(write(tmp_path, LLAVA))(image)
    torch.testing.assert_close(pixels.values, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "settings",
    [
        {"size": {"shortest_edge": 36}, "crop_size": {"height": 36, "width": 36}},
        {"size": 40, "crop_size": 30, "resample": 2, "image_mean": [0.5] * 3, "image_std": [0.25] * 3},
        {"size": {"height": 20, "width": 24}, "crop_size": {"height": 30, "width": 21}},
        {"size": {"height": 20, "width": 24}, "do_center_crop": False},
    ],
)
@pytest.mark.parametrize("size", [(57, 43), (43, 57), (5, 400), (36, 36)])
def test_clips_own_preprocessing_equals_transformers(
    tmp_path: Path, settings: dict[str, Any], size: tuple[int, int]
) -> None:
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    written = {"image_processor_type": "CLIPImageProcessor", **settings}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(written))
    image = random_image(*size)
    expected = CLIPImageProcessorPil(**settings)(images=[image], return_tensors="pt")["pixel_values"]
    preprocess = load_preprocessor(write(tmp_path, {"model_type": "llava", "vision_config": {}}))
    assert isinstance(preprocess, ClipPreprocess)
    torch.testing.assert_close(preprocess(image).values, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "settings",
    [
        {"do_normalize": False},
        {"rescale_factor": 1 / 127},
        {"size": {"shortest_edge": 36, "longest_edge": 90}},
    ],
)
def test_what_clips_own_preprocessing_does_not_compute_is_left_to_transformers(
    settings: dict[str, Any],
) -> None:
    assert ClipPreprocess.of({"image_processor_type": "CLIPImageProcessor", **settings}) is None
    assert ClipPreprocess.of({"image_processor_type": "SiglipImageProcessor"}) is None


def test_a_line_of_pixels_is_not_scaled_as_a_whole(tmp_path: Path) -> None:
    """336 x 67 million pixels would not fit into memory."""
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(PUBLISHED["llava"][0]))
    preprocess = load_preprocessor(write(tmp_path, {"model_type": "llava", "vision_config": {}}))
    pixels = preprocess(Image.new("RGB", (1, 200_000), (255, 0, 0)))
    expected = values(Image.new("RGB", (336, 336), (255, 0, 0)), *CLIP)[None]
    torch.testing.assert_close(pixels.values, expected, rtol=0, atol=1e-6)


PUBLISHED: dict[str, tuple[dict[str, Any], tuple[int, ...], tuple[int, int] | None]] = {
    "llava": (
        {"crop_size": {"height": 336, "width": 336}, "do_center_crop": True, "do_convert_rgb": True, "image_mean": CLIP[0],
         "image_std": CLIP[1], "image_processor_type": "CLIPImageProcessor", "processor_class": "LlavaProcessor",
         "resample": 3, "rescale_factor": 1 / 255, "size": {"shortest_edge": 336}},
        (1, 3, 336, 336), None,
    ),
    "qwen2_vl": (
        {"min_pixels": 3136, "max_pixels": 12845056, "patch_size": 14, "temporal_patch_size": 2, "merge_size": 2,
         "image_mean": CLIP[0], "image_std": CLIP[1], "image_processor_type": "Qwen2VLImageProcessor",
         "processor_class": "Qwen2VLProcessor"},
        (18 * 28, 1176), (18, 28),
    ),
    "qwen3_vl": (
        {"size": {"longest_edge": 16777216, "shortest_edge": 65536}, "patch_size": 16, "temporal_patch_size": 2,
         "merge_size": 2, "image_mean": [0.5] * 3, "image_std": [0.5] * 3, "processor_class": "Qwen3VLProcessor",
         "image_processor_type": "Qwen2VLImageProcessorFast"},
        (16 * 24, 1536), (16, 24),
    ),
    "gemma3": (
        {"do_convert_rgb": None, "do_pan_and_scan": None, "image_mean": [0.5] * 3, "image_std": [0.5] * 3,
         "image_processor_type": "Gemma3ImageProcessor", "image_seq_length": 256, "resample": 2,
         "processor_class": "Gemma3Processor", "rescale_factor": 1 / 255, "size": {"height": 896, "width": 896}},
        (1, 3, 896, 896), None,
    ),
}  # fmt: skip
"""preprocessor_config.json as it is published, and what becomes of an image of 391 x 257 pixels."""


@pytest.mark.parametrize("model_type", PUBLISHED)
def test_published_files_of_processors_are_understood(tmp_path: Path, model_type: str) -> None:
    settings, shape, grid = PUBLISHED[model_type]
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    pixels = load_preprocessor(write(tmp_path, {"model_type": model_type, "vision_config": {}}))(
        random_image(391, 257)
    )
    assert (pixels.values.shape, pixels.grid) == (shape, grid)
    assert -4 < pixels.values.min() < -0.9 and 0.9 < pixels.values.max() < 4


def test_a_folder_without_a_processors_file_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(InvalidModel, match=str(tmp_path)):
        load_preprocessor(write(tmp_path, {"model_type": "gemma3"}))
