"""LLaVA-1.5: every image is 336 x 336, one token a patch of 14 x 14 without CLIP's class token: 576.

The converted checkpoints (llava-hf) have a token <image>; the original ones have none, and their prompts are tokenized in pieces.
"""

from __future__ import annotations

import re

from lightllm.errors import InvalidModel
from lightllm.images.layouts.layout import Footprint, Layout, VisionFolder, positive

MARKER = "<image>"


def converted(folder: VisionFolder) -> Layout:
    """`LlavaForConditionalGeneration`."""
    vision = folder.config.get("vision_config") or {}
    # config.json leaves out what equals CLIP's defaults
    side = positive(vision.get("image_size", 336), "vision_config.image_size")
    patch = positive(vision.get("patch_size", 14), "vision_config.patch_size")
    tokens = (side // patch) ** 2
    if folder.config.get("vision_feature_select_strategy", "default") != "default":
        tokens += 1
    return Layout(
        "llava", MARKER, lambda width, height, detail: Footprint(tokens),
        folder.fingerprint("llava", side, patch, tokens),
        written=MARKER, placeholder=folder.id_of(MARKER, "image_token_index", "image_token_id"),
    )  # fmt: skip


def original(folder: VisionFolder) -> Layout:
    """`LlavaLlamaForCausalLM` (liuhaotian). The encoder is another checkpoint, whose name tells its sizes."""
    tower = str(folder.config.get("mm_vision_tower"))
    sizes = re.search(r"patch(\d+)(?:-(\d+))?", tower)
    if sizes is None:
        raise InvalidModel(
            f"mm_vision_tower of the model is {tower!r}: no name that tells patch and image size.",
            "LLaVA-1.5 has openai/clip-vit-large-patch14-336.",
        )
    patch, side = int(sizes[1]), int(sizes[2] or 224)
    tokens = (side // patch) ** 2 + (folder.config.get("mm_vision_select_feature", "patch") == "cls_patch")
    aspect = folder.config.get("image_aspect_ratio")
    return Layout(
        "llava", MARKER, lambda width, height, detail: Footprint(tokens),
        folder.fingerprint("llava-original", side, patch, tokens, aspect),
    )  # fmt: skip
