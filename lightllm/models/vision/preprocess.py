"""From a decoded image to what a vision encoder takes: transformers' image processor of the model, or our own.

preprocess = load_preprocessor(model_dir)    # once
pixels = preprocess(image)                   # PIL, RGB
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from lightllm.errors import InvalidModel
from lightllm.model_folder.config import read_whole_config
from lightllm.models.vision.llava import LlavaVision
from lightllm.models.vision.model import Pixels

Preprocess = Callable[[Image.Image], Pixels]


def load_preprocessor(model_dir: str) -> Preprocess:
    """Raises `InvalidModel`."""
    own = _OWN.get(read_whole_config(model_dir).get("model_type", ""))
    if own is not None and (preprocess := own(read_whole_config(model_dir), Path(model_dir))) is not None:
        return preprocess
    return load_transformers_processor(model_dir)


def load_transformers_processor(model_dir: str) -> Preprocess:
    """With the implementation in PIL and numpy: the other, in torchvision, resizes otherwise."""
    from transformers import AutoImageProcessor

    try:
        processor = AutoImageProcessor.from_pretrained(model_dir, backend="pil", trust_remote_code=False)
    except (OSError, ValueError, ImportError) as error:
        first_line = str(error).partition("\n")[0]
        raise InvalidModel(
            f"{model_dir} has no image processor that can be loaded: {first_line}",
            "Is the download complete?",
        ) from error

    return _with(processor)


def original_llava(raw: Mapping[str, Any], folder: Path) -> Preprocess | None:
    """Original checkpoints of LLaVA have no processor's file: `image_aspect_ratio` "pad" makes an image square first, in the
    colour of the mean; then CLIP's steps follow."""
    if "mm_vision_tower" not in raw:
        return None
    from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

    side = LlavaVision.read_config(raw, folder).extra.clip.image_size
    pads = raw.get("image_aspect_ratio") == "pad"
    return _with(LlavaImageProcessorPil(
        do_pad=pads, size={"shortest_edge": side}, crop_size={"height": side, "width": side}
    ))  # fmt: skip


def _with(processor: Any) -> Preprocess:
    def preprocess(image: Image.Image) -> Pixels:
        made = processor(images=[image], return_tensors="pt")
        grid = made.get("image_grid_thw")
        size = None if grid is None else (int(grid[0, 1]), int(grid[0, 2]))
        return Pixels(made["pixel_values"].float(), size)

    return preprocess


_OWN: dict[str, Callable[[Mapping[str, Any], Path], Preprocess | None]] = {
    "llava": original_llava,
    "llava_llama": original_llava,
}
"""`model_type` -> from config.json and the model folder to our own preprocessing; None: there is a processor of transformers."""
