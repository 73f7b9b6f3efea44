"""From a decoded image to what a vision encoder takes: transformers' image processor of the model, or our own.

preprocess = load_preprocessor(model_dir)    # once
pixels = preprocess(image)                   # PIL, RGB
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image

from lightllm.errors import InvalidModel
from lightllm.images.layouts.internvl import tile_grid
from lightllm.images.layouts.registry import read_processor
from lightllm.model_folder.config import read_whole_config
from lightllm.models.vision.internvl import InternVLVision
from lightllm.models.vision.llava import LlavaVision
from lightllm.models.vision.model import Pixels
from lightllm.models.vision.qwen_vl import QwenVLVision

_CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
"""Mean and standard deviation of CLIP's red, green and blue, of 1: Qwen-VL's."""
_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""Mean and standard deviation of ImageNet's red, green and blue, of 1: InternVL's."""

_MOST_SCALED = 1 << 24
"""Pixels of a scaled image; of larger ones only what is not cut off is computed."""


class Preprocess(Protocol):
    def __call__(self, image: Image.Image, max_tiles: int | None = None) -> Pixels:
        """image: RGB; max_tiles: of families that cut images into tiles, None: as many as the model was made for."""


def load_preprocessor(model_dir: str) -> Preprocess:
    """Raises `InvalidModel`."""
    raw = read_whole_config(model_dir)
    own = _OWN.get(raw.get("model_type", ""))
    preprocess = None if own is None else own(raw, Path(model_dir))
    return preprocess or _load_transformers_processor(model_dir, raw)


def _load_transformers_processor(model_dir: str, raw: Mapping[str, Any]) -> Preprocess:
    """In the implementation in PIL and numpy: the other, in torchvision, resizes otherwise."""
    from transformers import AutoImageProcessor

    try:
        processor = AutoImageProcessor.from_pretrained(model_dir, backend="pil", trust_remote_code=False)
    except (OSError, ValueError, ImportError) as error:
        first_line = str(error).partition("\n")[0]
        raise InvalidModel(
            f"{model_dir} has no image processor that can be loaded: {first_line}",
            "Is the download complete?",
        ) from error
    return TransformersPreprocess(processor, cuts=raw.get("model_type") == "internvl")


class TransformersPreprocess:
    """An image processor of transformers, one image at a time."""

    def __init__(self, processor: Any, cuts: bool = False) -> None:
        """cuts: it cuts images into tiles if it is told so."""
        self.processor, self.cuts = processor, cuts

    def __call__(self, image: Image.Image, max_tiles: int | None = None) -> Pixels:
        options: dict[str, Any] = {}
        if self.cuts:
            options = {"crop_to_patches": True} | ({} if max_tiles is None else {"max_patches": max_tiles})
        made = self.processor(images=[image], return_tensors="pt", **options)
        grid = made.get("image_grid_thw")
        return Pixels(
            made["pixel_values"].float(), None if grid is None else (int(grid[0, 1]), int(grid[0, 2]))
        )


def llava(raw: Mapping[str, Any], folder: Path) -> Preprocess | None:
    """Original checkpoints of LLaVA have no processor's file: `image_aspect_ratio` "pad" makes an image square first; then CLIP's
    steps follow."""
    if "mm_vision_tower" not in raw:
        return ClipPreprocess.of(read_processor(str(folder)))
    side = LlavaVision.read_config(raw, folder).extra.clip.image_size
    return ClipPreprocess({"size": side, "crop_size": side}, pads=raw.get("image_aspect_ratio") == "pad")


class ClipPreprocess:
    """CLIP's image processor: scale, cut out the middle (black where the image is smaller), normalise. The values are those of
    transformers' `CLIPImageProcessorPil`, without the seconds that its import takes."""

    def __init__(self, settings: Mapping[str, Any], pads: bool = False) -> None:
        """settings: of preprocessor_config.json; pads: images become square first, in the colour of the mean."""
        self.pads = pads
        size = settings.get("size", 224)
        self.size = {"shortest_edge": size} if isinstance(size, int) else size
        crop = settings.get("crop_size", 224)
        crop = {"height": crop, "width": crop} if isinstance(crop, int) else crop
        self.crop = (crop["width"], crop["height"]) if settings.get("do_center_crop", True) else None
        self.resample = Image.Resampling(settings.get("resample", Image.Resampling.BICUBIC))
        mean, std = _CLIP
        self.mean, self.std = settings.get("image_mean", mean), settings.get("image_std", std)

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> ClipPreprocess | None:
        """None: the settings are another processor's, or say something that is not computed here."""
        settings = {name: value for name, value in settings.items() if value is not None}
        kind = settings.get("image_processor_type") or settings.get("feature_extractor_type", "")
        if not kind.startswith(("CLIPImageProcessor", "CLIPFeatureExtractor")):
            return None
        steps = ("do_resize", "do_rescale", "do_normalize")
        size = settings.get("size", 224)
        plain = (
            all(settings.get(step, True) for step in steps)
            and not settings.get("do_pad")
            and abs(settings.get("rescale_factor", 1 / 255) - 1 / 255) < 1e-9
            and (isinstance(size, int) or set(size) in ({"shortest_edge"}, {"height", "width"}))
        )
        return cls(settings) if plain else None

    def __call__(self, image: Image.Image, max_tiles: int | None = None) -> Pixels:
        if self.pads:
            image = self._squared(image)
        width, height = self._scaled(image.width, image.height)
        wide, high = self.crop or (width, height)
        left, top = (width - wide) // 2, (height - high) // 2
        if left >= 0 and top >= 0 and width * height > _MOST_SCALED:
            # Some values differ by 1 of 255, but scaled as a whole an image of one pixel's width can take all memory.
            across, down = image.width / width, image.height / height
            box = (left * across, top * down, (left + wide) * across, (top + high) * down)
            cut = image.resize((wide, high), self.resample, box)
        else:
            cut = image.resize((width, height), self.resample).crop((left, top, left + wide, top + high))
        return Pixels(normalised([cut], self.mean, self.std))

    def _squared(self, image: Image.Image) -> Image.Image:
        side = max(image.width, image.height)
        square = Image.new("RGB", (side, side), tuple(int(255 * colour) for colour in self.mean))
        square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
        return square

    def _scaled(self, width: int, height: int) -> tuple[int, int]:
        """Width and height of the whole image."""
        if "shortest_edge" not in self.size:
            return self.size["width"], self.size["height"]
        edge = self.size["shortest_edge"]
        long = int(edge * max(width, height) / min(width, height))
        return (edge, long) if width <= height else (long, edge)


class InternVLPreprocess:
    """`dynamic_preprocess` of the published model's description: tiles of one size, and with more than one a thumbnail."""

    def __init__(self, raw: Mapping[str, Any], folder: Path) -> None:
        self.side = raw.get("force_image_size") or InternVLVision.read_config(raw, folder).extra.image_size
        self.min_tiles, self.max_tiles = raw.get("min_dynamic_patch", 1), raw.get("max_dynamic_patch", 12)
        if not raw.get("dynamic_image_size", True):
            self.min_tiles = self.max_tiles = 1
        self.use_thumbnail = raw.get("use_thumbnail", True)

    def __call__(self, image: Image.Image, max_tiles: int | None = None) -> Pixels:
        most = min(self.max_tiles, max_tiles or self.max_tiles)
        columns, rows = tile_grid(image.width, image.height, self.side, min(self.min_tiles, most), most)
        side = self.side
        whole = image.resize((columns * side, rows * side), Image.Resampling.BICUBIC)
        tiles = [
            whole.crop((column * side, row * side, (column + 1) * side, (row + 1) * side))
            for row in range(rows)
            for column in range(columns)
        ]
        if self.use_thumbnail and len(tiles) > 1:
            tiles.append(image.resize((side, side), Image.Resampling.BICUBIC))
        return Pixels(normalised(tiles, *_IMAGENET))


class QwenVLPreprocess:
    """Every image is stretched to one size, whatever its proportions are."""

    def __init__(self, raw: Mapping[str, Any], folder: Path) -> None:
        self.side = QwenVLVision.read_config(raw, folder).extra.image_size

    def __call__(self, image: Image.Image, max_tiles: int | None = None) -> Pixels:
        return Pixels(normalised([image.resize((self.side, self.side), Image.Resampling.BICUBIC)], *_CLIP))


def normalised(tiles: Sequence[Image.Image], mean: Sequence[float], std: Sequence[float]) -> torch.Tensor:
    """float32 [tiles, 3, height, width]: (value / 255 - mean) / std of each colour."""
    values = torch.from_numpy(np.stack([np.asarray(tile) for tile in tiles])).float().div_(255)
    return values.sub_(torch.tensor(mean)).div_(torch.tensor(std)).permute(0, 3, 1, 2)


_OWN: dict[str, Callable[[Mapping[str, Any], Path], Preprocess | None]] = {
    "llava": llava,
    "llava_llama": llava,
    "internvl_chat": InternVLPreprocess,
    "qwen": QwenVLPreprocess,
}
"""`model_type` -> from config.json and the model folder to our own preprocessing; None: there is a processor of transformers."""
