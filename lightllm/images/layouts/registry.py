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
    "llava": llava.layout,
    "llava_llama": llava.layout,
    "qwen": qwen_vl.layout,
    "qwen2_vl": qwen2_vl.layout,
    "qwen2_5_vl": qwen2_vl.layout,
    "qwen3_vl": qwen2_vl.layout,
    "internvl_chat": internvl.layout,
    "internvl": internvl.converted,
    "gemma3": gemma3.layout,
}
"""By config.json's `model_type`; Qwen 1 sees if there is `visual` too. The encoders' registry has the same families."""


def sees(config: Mapping[str, Any]) -> bool:
    """Whether a model with this config.json takes images."""
    return _family(config) is not None


def layout_of(model_dir: str, token_id: Callable[[str], int | None]) -> Layout | None:
    """`token_id`: of the model's tokenizer. None for a model that takes no images. Raises `InvalidModel`."""
    config = read_whole_config(model_dir)
    family = _family(config)
    if family is None:
        return None
    return LAYOUTS[family](VisionFolder(Path(model_dir), config, read_processor(model_dir), token_id))


def read_processor(model_dir: str) -> dict[str, Any]:
    """Settings of the image processor: preprocessor_config.json, or that part of processor_config.json; {} without both."""
    folder = Path(model_dir)
    settings = read_json_object(folder / "preprocessor_config.json")
    return settings or read_json_object(folder / "processor_config.json").get("image_processor") or {}


def _family(config: Mapping[str, Any]) -> str | None:
    name = config.get("model_type", "")
    return name if name in LAYOUTS and (name != "qwen" or "visual" in config) else None
