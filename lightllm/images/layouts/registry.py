"""From a model folder to its layout."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lightllm.images.layouts import gemma3, internvl, llava, qwen2_vl, qwen_vl
from lightllm.images.layouts.layout import Layout, VisionFolder
from lightllm.model_folder.config import read_whole_config
from lightllm.model_folder.json_files import read_json_object

LAYOUTS: Mapping[str, Callable[[VisionFolder], Layout]] = {
    "LlavaForConditionalGeneration": llava.converted,
    "LlavaLlamaForCausalLM": llava.original,
    "QWenLMHeadModel": qwen_vl.layout,
    "Qwen2VLForConditionalGeneration": qwen2_vl.layout,
    "Qwen2_5_VLForConditionalGeneration": qwen2_vl.layout,
    "Qwen3VLForConditionalGeneration": qwen2_vl.layout,
    "Qwen3VLMoeForConditionalGeneration": qwen2_vl.layout,
    "InternVLChatModel": internvl.layout,
    "Gemma3ForConditionalGeneration": gemma3.layout,
}
"""By architecture; a model sees if its own is here (and, of Qwen 1, if config.json has `visual`)."""


def sees(config: Mapping[str, Any]) -> bool:
    """Whether a model with this config.json takes images."""
    return _architecture(config) is not None


def layout_of(model_dir: str, token_id: Callable[[str], int | None]) -> Layout | None:
    """`token_id`: of the model's tokenizer. None for a model that takes no images. Raises `InvalidModel`."""
    config = read_whole_config(model_dir)
    architecture = _architecture(config)
    if architecture is None:
        return None
    return LAYOUTS[architecture](VisionFolder(config, read_processor(model_dir), token_id))


def read_processor(model_dir: str) -> dict[str, Any]:
    """Settings of the image processor: preprocessor_config.json, or that part of processor_config.json; {} without both."""
    folder = Path(model_dir)
    settings = read_json_object(folder / "preprocessor_config.json")
    return settings or read_json_object(folder / "processor_config.json").get("image_processor") or {}


def _architecture(config: Mapping[str, Any]) -> str | None:
    for name in config.get("architectures") or ():
        if name in LAYOUTS and (name != "QWenLMHeadModel" or "visual" in config):
            return name
    return None
