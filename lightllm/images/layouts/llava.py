"""LLaVA-1.5: every image is 336 x 336, one token a patch of 14 x 14 without CLIP's class token: 576.

The converted checkpoints (llava-hf) have a token <image>; the original ones have none, and their prompts are tokenized in pieces.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lightllm.images.layouts.layout import Footprint, Layout, VisionFolder, side
from lightllm.model_folder.json_files import read_json_object

MARKER = "<image>"


def layout(folder: VisionFolder) -> Layout:
    return _original(folder) if "mm_vision_tower" in folder.config else _converted(folder)


def _converted(folder: VisionFolder) -> Layout:
    vision = folder.config.get("vision_config") or {}
    tokens = _tokens(vision, folder.config.get("vision_feature_select_strategy", "default"))
    return Layout(
        "llava", MARKER, lambda width, height, detail: Footprint(tokens), folder.fingerprint("llava", vision, tokens),
        written=MARKER, placeholder=folder.id_of(MARKER, "image_token_index", "image_token_id"),
    )  # fmt: skip


def _original(folder: VisionFolder) -> Layout:
    """Of liuhaotian. The encoder is a folder that `mm_vision_tower` names, or CLIP ViT-L/14-336."""
    tower = read_json_object(folder.path / str(folder.config["mm_vision_tower"]) / "config.json")
    vision = tower.get("vision_config") or tower
    tokens = _tokens(vision, folder.config.get("mm_vision_select_feature", "patch"))
    processing = folder.fingerprint("llava-original", vision, tokens, folder.config.get("image_aspect_ratio"))
    return Layout("llava", MARKER, lambda width, height, detail: Footprint(tokens), processing)


def _tokens(vision: Mapping[str, Any], select: str) -> int:
    """Patches, with CLIP's class token where the model keeps it. config.json leaves out what equals CLIP's defaults."""
    patches = side(vision.get("image_size", 336), "image_size") // side(
        vision.get("patch_size", 14), "patch_size"
    )
    has_class_token = vision.get("model_type", "clip_vision_model") != "siglip_vision_model"
    return patches**2 + (has_class_token and select in ("full", "cls_patch"))
