"""Models that see: which architecture computes the language model in them, and what their checkpoints call its tensors.

Vision encoder and projector are another part of the same checkpoint (`models/vision/`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from lightllm.model_folder.config import language_part
from lightllm.models.architectures import find_architecture

LANGUAGE_MODELS = {
    "llava": "llama", "llava_llama": "llama", "qwen2_vl": "qwen2", "qwen2_5_vl": "qwen2", "qwen3_vl": "qwen3",
    "gemma3": "gemma3_text", "internvl": "qwen2", "internvl_chat": "internlm2",
}  # fmt: skip
"""`model_type` of a model that sees -> that of its language model, unless the part of config.json on the language model says
another."""

BIDIRECTIONAL = frozenset({"gemma3"})
"""`model_type` of models in which tokens of an image see each other in both directions."""

_SAME = {"qwen2_vl_text": "qwen2", "qwen2_5_vl_text": "qwen2", "qwen3_vl_text": "qwen3"}
"""`model_type` of a language model inside a model that sees -> that of the same computation alone."""

_VISION = re.compile(
    r"(model\.|transformer\.)?(vision_tower|vision_model|visual|multi_modal_projector|mm_projector|mlp1)\."
)
"""How tensors of vision encoders and projectors begin."""


def sees(whole: Mapping[str, Any]) -> bool:
    """whole: config.json as it is."""
    return whole.get("model_type") in LANGUAGE_MODELS or "visual" in whole


def language_architecture(whole: Mapping[str, Any], overrule: Callable[[str], None]) -> str:
    """As `find_architecture`, for a model that sees too."""
    kind = whole.get("model_type")
    if kind not in LANGUAGE_MODELS:
        return find_architecture(whole, overrule)
    inner = language_part(whole).get("model_type") or LANGUAGE_MODELS[kind]
    return find_architecture({"model_type": _SAME.get(inner, inner)}, overrule)


def language_name(spelling: str) -> str | None:
    """The name of a tensor in a checkpoint of the language model alone; None: it belongs to the vision encoder or projector.

    `model.language_model.layers.0` (transformers 5), `language_model.model.layers.0` (before) -> `model.layers.0`.
    """
    if _VISION.match(spelling):
        return None
    if spelling.startswith("model.language_model."):
        return "model." + spelling.removeprefix("model.language_model.")
    return spelling.removeprefix("language_model.")
