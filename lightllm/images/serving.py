"""Whether a server takes images, and how large the embeddings of its model are; from options and config.json alone."""

from __future__ import annotations

import math

from lightllm.config import ServerConfig
from lightllm.errors import InvalidModel
from lightllm.images.layouts.layout import Layout
from lightllm.images.layouts.registry import layout_of, sees
from lightllm.model_folder.config import read_model_config, read_whole_config


def serves_images(config: ServerConfig) -> bool:
    """config: with the model folder resolved. One node only: the embeddings are in the memory of the machine that made them."""
    if (
        config.disable_vision
        or config.mock_backend is not None
        or config.nnodes > 1
        or config.model_dir is None
    ):
        return False
    return sees(read_whole_config(config.model_dir))


def encoder_gpus(config: ServerConfig, server: int) -> list[int]:
    """Of each rank of this Visual Server; one GPU may serve several encoders."""
    ids = config.visual_gpu_ids or list(range(config.visual_dp * config.visual_tp))
    return ids[server * config.visual_tp : (server + 1) * config.visual_tp]


def embedding_width(model_dir: str) -> int:
    """Numbers a token: the language model's hidden size; in Qwen3-VL, whose embeddings are added behind some layers too, a
    multiple of it. Raises `InvalidModel`."""
    hidden = read_model_config(model_dir).get("hidden_size")
    if not isinstance(hidden, int) or hidden <= 0:
        raise InvalidModel(f"config.json of {model_dir} names no hidden_size.", "Correct the file.")
    vision = read_whole_config(model_dir).get("vision_config")
    levels = vision.get("deepstack_visual_indexes") if isinstance(vision, dict) else None
    return hidden * (1 + len(levels or ()))


def most_tokens(config: ServerConfig) -> int:
    """Of one image, as large as --max_image_pixels allows, of the shape that has most. Raises `InvalidModel`."""
    assert config.model_dir is not None
    layout = layout_of(config.model_dir, lambda token: 1)  # any id: it is not written
    return 0 if layout is None else _most_tokens(layout, config.max_image_pixels)


def _most_tokens(layout: Layout, pixels: int) -> int:
    """Images that are cut into tiles have most tokens where their proportions are those of a large grid."""
    ratios = {wide / high for wide in range(1, 13) for high in range(1, wide + 1)}
    sides = [(math.isqrt(int(pixels * ratio)), math.isqrt(int(pixels / ratio))) for ratio in ratios]
    return max(layout.footprint(max(1, width), max(1, height), "high").tokens for width, height in sides)
