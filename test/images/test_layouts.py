"""How many tokens an image has, against transformers' own processors and the formulas of the models' descriptions."""

import contextlib
import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from lightllm.config import ServerConfig
from lightllm.errors import InvalidImage, InvalidModel
from lightllm.images.layouts.layout import Footprint, Layout, VisionFolder
from lightllm.images.layouts.registry import LAYOUTS, layout_of, sees
from lightllm.images.serving import most_tokens

SIDES = (1, 13, 28, 29, 55, 100, 224, 337, 448, 449, 640, 999, 1333, 2048, 5000)
SIZES = list(itertools.product(SIDES, SIDES))
TOKENS = {
    "<image>": 32000, "<|image_pad|>": 151655, "<IMG_CONTEXT>": 92546, "<image_soft_token>": 262144, "<img>": 151857,
}  # fmt: skip


def layout(family: str, processor: dict[str, Any] | None = None, **config: Any) -> Layout:
    return LAYOUTS[family](VisionFolder(Path(), config, processor or {}, TOKENS.get))


def counts(of: Layout, width: int, height: int) -> Footprint:
    return of.footprint(width, height, "auto")


PROCESSORS = {
    "Qwen2-VL": {
        "min_pixels": 3136,
        "max_pixels": 12845056,
        "patch_size": 14,
        "merge_size": 2,
        "temporal_patch_size": 2,
    },
    "small": {"min_pixels": 4 * 28 * 28, "max_pixels": 256 * 28 * 28, "patch_size": 14, "merge_size": 2},
    "Qwen3-VL": {
        "size": {"shortest_edge": 65536, "longest_edge": 16777216},
        "patch_size": 16,
        "merge_size": 2,
    },
    "defaults": {},
}


@pytest.mark.parametrize("name", PROCESSORS)
def test_qwen2_vl_counts_as_its_processor_does(name: str) -> None:
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    processor = Qwen2VLImageProcessorPil(**PROCESSORS[name])
    ours = layout("qwen2_5_vl", PROCESSORS[name])
    for width, height in SIZES:
        if max(width, height) > 200 * min(width, height):
            with pytest.raises(InvalidImage, match=f"{width} x {height} pixels is too narrow"):
                counts(ours, width, height)
            continue
        footprint = counts(ours, width, height)
        assert footprint.tokens * 4 == processor.get_number_of_image_patches(height, width), (width, height)
        assert footprint.grid is not None and footprint.grid[1] * footprint.grid[2] == footprint.tokens


@pytest.mark.parametrize("size", [(640, 333), (1, 199), (30, 31), (200, 1)])
def test_the_grid_of_qwen2_vl_is_that_of_its_pixels(size: tuple[int, int]) -> None:
    from PIL import Image
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    settings = PROCESSORS["Qwen2-VL"]
    made = Qwen2VLImageProcessorPil(**settings)(Image.new("RGB", size), return_tensors="np")
    t, h, w = made["image_grid_thw"][0].tolist()
    footprint = counts(layout("qwen2_vl", settings), *size)
    assert footprint.grid == (t, h // 2, w // 2) and footprint.tokens == len(made["pixel_values"]) // 4


@pytest.mark.parametrize(
    ("config", "tokens"),
    [
        ({}, 576), ({"vision_config": {"image_size": 224, "patch_size": 14}}, 256),
        ({"vision_feature_select_strategy": "full"}, 577),
    ],
)  # fmt: skip
def test_llava_counts_as_its_processor_does(config: dict[str, Any], tokens: int) -> None:
    from PIL import Image
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    side = config.get("vision_config", {}).get("image_size", 336)
    processor = CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size={"height": side, "width": side})
    ours = layout("llava", image_token_index=32000, **config)
    for size in ((1, 1), (640, 333), (17, 900)):
        height, width = processor(Image.new("RGB", size), return_tensors="np")["pixel_values"].shape[2:]
        # LlavaProcessor: patches, with CLIP's class token unless the strategy is "default"
        expected = (height // 14) * (width // 14) + (config.get("vision_feature_select_strategy") == "full")
        assert counts(ours, *size) == Footprint(expected) and expected == tokens
    assert ours.placeholder == 32000 and ours.written == "<image>"


def test_the_original_llava_has_the_encoder_that_it_names(tmp_path: Path) -> None:
    """A folder beside it, or CLIP ViT-L/14-336."""
    config = {"model_type": "llava", "mm_vision_tower": "openai/clip-vit-large-patch14-336"}
    ours = layout_of(folder(tmp_path, config=config), TOKENS.get)
    assert ours is not None and counts(ours, 640, 480).tokens == 576 and ours.written is None
    (tmp_path / "clip").mkdir()
    folder(tmp_path / "clip", config={"vision_config": {"image_size": 224, "patch_size": 14}})
    for select, tokens in (("patch", 256), ("cls_patch", 257)):
        config |= {"mm_vision_tower": "clip", "mm_vision_select_feature": select}
        ours = layout_of(folder(tmp_path, config=config), TOKENS.get)
        assert ours is not None and counts(ours, 640, 480).tokens == tokens


def published_tiles(width: int, height: int, min_num: int, max_num: int, image_size: int) -> tuple[int, int]:
    """`dynamic_preprocess` and `find_closest_aspect_ratio` of InternVL's model cards."""
    ratios = {
        (i, j) for n in range(min_num, max_num + 1) for i in range(1, n + 1) for j in range(1, n + 1)
        if min_num <= i * j <= max_num
    }  # fmt: skip
    best_diff, best = float("inf"), (1, 1)
    for ratio in sorted(ratios, key=lambda x: x[0] * x[1]):
        diff = abs(width / height - ratio[0] / ratio[1])
        if diff < best_diff:
            best_diff, best = diff, ratio
        elif diff == best_diff and width * height > 0.5 * image_size * image_size * ratio[0] * ratio[1]:
            best = ratio
    return best


@pytest.mark.parametrize("most", [1, 6, 12])
def test_internvl_tiles_by_the_published_formula(most: int) -> None:
    ours = layout("internvl_chat", max_dynamic_patch=most, force_image_size=448, downsample_ratio=0.5)
    for width, height in SIZES:
        columns, rows = published_tiles(width, height, 1, most, 448)
        footprint = counts(ours, width, height)
        tiles = columns * rows
        assert footprint.tiles == (columns, rows), (width, height)
        assert footprint.tokens == 256 * (tiles + (tiles > 1)) <= 256 * 13


def test_internvl_tiles_as_the_processor_of_its_converted_checkpoints() -> None:
    from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil

    processor = GotOcr2ImageProcessorPil(
        size={"height": 448, "width": 448}, crop_to_patches=True, min_patches=1, max_patches=12
    )
    ours = layout("internvl_chat")
    for width, height in SIZES[::3]:
        assert counts(ours, width, height).tokens == 256 * processor.get_number_of_image_patches(
            height, width, {}
        )


def test_internvl_of_low_detail_is_one_tile_with_a_key_of_its_own() -> None:
    ours = layout("internvl_chat")
    low, high = ours.footprint(2000, 1000, "low"), ours.footprint(2000, 1000, "high")
    assert low.tokens == 256 and high.tokens > 256 and high == ours.footprint(2000, 1000, "auto")
    assert ours.content_key("abc", low) != ours.content_key("abc", high)


def test_families_of_one_size_have_their_number() -> None:
    assert counts(layout("qwen", visual={"image_start_id": 151857, "image_size": 448}), 1, 5000).tokens == 256
    gemma = layout("gemma3", mm_tokens_per_image=256, image_token_index=262144)
    assert counts(gemma, 640, 480).tokens == 256 and gemma.bidirectional and gemma.placeholder == 262144


def test_gemma3_writes_what_its_processor_writes() -> None:
    from transformers.models.gemma3.processing_gemma3 import Gemma3Processor

    class Tokens:
        boi_token, eoi_token, image_token = "<start_of_image>", "<end_of_image>", "<image_soft_token>"
        boi_token_id = 255999

    made = Gemma3Processor.__new__(Gemma3Processor)
    with contextlib.suppress(
        TypeError, AttributeError, ValueError
    ):  # what comes behind needs a whole tokenizer
        Gemma3Processor.__init__(made, None, Tokens, image_seq_length=1)
    assert layout("gemma3").written == made.full_image_sequence


@pytest.mark.parametrize("pixels", [1, 50_000_000])
@pytest.mark.parametrize(
    ("config", "tokens"),
    [
        ({"model_type": "qwen", "visual": {"image_size": 448}}, 256),
        ({"model_type": "internvl_chat"}, 256 * 13),
    ],
)
def test_the_largest_image_is_known_before_there_is_a_tokenizer(
    tmp_path: Path, config: dict[str, Any], tokens: int, pixels: int
) -> None:
    server = ServerConfig(model_dir=folder(tmp_path, config=config), max_image_pixels=pixels)
    assert most_tokens(server) == tokens if pixels > 1 else 0 < most_tokens(server) <= tokens


def test_the_key_names_content_and_processing() -> None:
    one, other = (layout("qwen2_vl", {"max_pixels": pixels}) for pixels in (10**6, 10**5))
    assert one.content_key("abc", counts(one, 9, 9)) != other.content_key("abc", counts(other, 9, 9))
    again = layout("qwen2_vl", {"max_pixels": 10**6})
    assert again.fingerprint == one.fingerprint


def folder(tmp_path: Path, **files: dict[str, Any]) -> str:
    for name, content in files.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    return str(tmp_path)


@pytest.mark.parametrize("where", ["preprocessor_config", "processor_config"])
def test_a_model_folder_gives_its_layout(tmp_path: Path, where: str) -> None:
    settings = {"patch_size": 16, "merge_size": 2, "size": {"shortest_edge": 65536, "longest_edge": 16777216}}
    made = folder(
        tmp_path,
        config={"model_type": "qwen3_vl", "image_token_id": 7},
        **{where: settings if where == "preprocessor_config" else {"image_processor": settings}},
    )
    found = layout_of(made, TOKENS.get)
    assert found is not None and found.placeholder == 7 and counts(found, 320, 320).grid == (1, 10, 10)


def test_a_text_model_has_none(tmp_path: Path) -> None:
    assert layout_of(folder(tmp_path, config={"model_type": "llama"}), TOKENS.get) is None
    assert not sees({"model_type": "qwen"}) and sees({"model_type": "qwen", "visual": {}})
    assert not sees({})


@pytest.mark.parametrize(
    ("family", "config", "message"),
    [
        ("llava", {"vision_config": {"patch_size": 0}}, "patch_size"),
        ("internvl_chat", {"max_dynamic_patch": "x"}, "'x'"),
        ("gemma3", {"mm_tokens_per_image": None}, "mm_tokens_per_image"),
    ],
)  # fmt: skip
def test_a_broken_model_folder_is_one_line(family: str, config: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidModel, match=message):
        layout(family, **config)


def test_a_tokenizer_without_the_marker_is_named() -> None:
    with pytest.raises(InvalidModel, match="no token <IMG_CONTEXT>"):
        LAYOUTS["internvl_chat"](VisionFolder(Path(), {}, {}, lambda token: None))
