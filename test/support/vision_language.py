"""Small random checkpoints of models that see, written by transformers, and what transformers answers to prompts with images."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

import torch

from lightllm.protocol.messages import ImageSpan
from support.checkpoints import write_tokenizer
from support.model_zoo import calm, randomise

VOCAB, IMAGE_ID = 384, 383
FIRST_VIRTUAL_ID = 2**24
TEXT: dict[str, Any] = {
    "vocab_size": VOCAB, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 512, "bos_token_id": 1, "eos_token_id": 2,
    "pad_token_id": 0,
}  # fmt: skip
QWEN_VISION: dict[str, Any] = {
    "depth": 2, "num_heads": 2, "patch_size": 4, "spatial_merge_size": 2, "temporal_patch_size": 2, "hidden_size": 32,
    "intermediate_size": 64, "out_hidden_size": 64,
}  # fmt: skip
THETA = {"rope_type": "default", "rope_theta": 10000.0}
SECTIONS = {**THETA, "mrope_section": [2, 3, 3]}
CLIP: dict[str, Any] = {
    "model_type": "clip_vision_model", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 2, "image_size": 20, "patch_size": 4,
}  # fmt: skip
FAMILIES: dict[str, dict[str, Any]] = {
    "llava": {"text_config": {**TEXT, "model_type": "llama", "rope_parameters": THETA}, "vision_config": CLIP,
              "image_token_index": IMAGE_ID},
    "qwen2_vl": {"text_config": {**TEXT, "rope_parameters": SECTIONS}, "tie_word_embeddings": True,
                 "vision_config": {**QWEN_VISION, "embed_dim": 32, "hidden_size": 64, "mlp_ratio": 2}},
    "qwen2_5_vl": {"text_config": {**TEXT, "rope_parameters": SECTIONS},
                   "vision_config": {**QWEN_VISION, "fullatt_block_indexes": [1], "window_size": 16}},
    "qwen3_vl": {"text_config": {**TEXT, "rope_parameters": {**SECTIONS, "mrope_interleaved": True}},
                 "vision_config": {**QWEN_VISION, "deepstack_visual_indexes": [0, 1], "num_position_embeddings": 64}},
    "gemma3": {"text_config": {**TEXT, "sliding_window": 24, "layer_types": ["sliding_attention", "full_attention"] * 2,
                               "num_hidden_layers": 4, "query_pre_attn_scalar": 16},
               "vision_config": {**CLIP, "model_type": "siglip_vision_model"}, "mm_tokens_per_image": 25,
               "boi_token_index": 381, "eoi_token_index": 382, "image_token_index": IMAGE_ID},
}  # fmt: skip
"""`model_type` -> what its config says beside transformers' defaults."""
ONE_SIZE = {"llava", "gemma3"}
"""Families whose images are all of one size."""


@dataclasses.dataclass(frozen=True)
class Image:
    item_id: int
    pixels: torch.Tensor
    """Of one image, as transformers' processor would give them."""
    grid: tuple[int, int, int] | None
    """Of tokens."""
    embedding: torch.Tensor
    """[tokens, hidden size, or a multiple of it]"""

    @property
    def ids(self) -> list[int]:
        first = FIRST_VIRTUAL_ID + 1000 * self.item_id
        return list(range(first, first + len(self.embedding)))


@dataclasses.dataclass(frozen=True)
class VisionLanguage:
    path: Path
    model: Any
    """transformers' model."""

    def image(self, item_id: int, rows: int, columns: int) -> Image:
        """A random picture; rows, columns: of its tokens, where images of the family have their own sizes."""
        generator = torch.Generator().manual_seed(item_id)
        if self.model.config.model_type in ONE_SIZE:
            pixels, grid = torch.randn(1, 3, 20, 20, generator=generator), None
        else:
            pixels = torch.randn(4 * rows * columns, 3 * 2 * 4 * 4, generator=generator)
            grid = (1, rows, columns)
        image = Image(item_id, pixels, grid, torch.empty(0))
        with torch.inference_mode():
            found = self.model.get_image_features(**self._inputs([image]))
        parts = [
            found.pooler_output[0],
            *(layer[0] for layer in getattr(found, "deepstack_features", None) or ()),
        ]
        return dataclasses.replace(image, embedding=torch.cat(parts, dim=1))

    def greedy(self, prompt: list[int | Image], count: int) -> list[int]:
        ids = torch.tensor([self._placeholders(prompt)])
        with torch.inference_mode():
            out = self.model.generate(
                input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, do_sample=False,
                eos_token_id=None, pad_token_id=0, **self._images(prompt, ids),
            )  # fmt: skip
        return out[0, ids.shape[1] :].tolist()

    def logits(self, prompt: list[int | Image]) -> torch.Tensor:
        """float32 [T, vocab]"""
        ids = torch.tensor([self._placeholders(prompt)])
        with torch.inference_mode():
            return self.model(input_ids=ids, **self._images(prompt, ids)).logits[0].float()

    @staticmethod
    def _placeholders(prompt: list[int | Image]) -> list[int]:
        return [
            i for part in prompt for i in ([part] if isinstance(part, int) else [IMAGE_ID] * len(part.ids))
        ]

    def _images(self, prompt: list[int | Image], ids: torch.Tensor) -> dict[str, torch.Tensor]:
        images = [part for part in prompt if isinstance(part, Image)]
        if not images:
            return {}
        types = {"gemma3": "token_type_ids", "llava": ""}.get(
            self.model.config.model_type, "mm_token_type_ids"
        )
        return self._inputs(images) | ({types: (ids == IMAGE_ID).int()} if types else {})

    @staticmethod
    def _inputs(images: list[Image]) -> dict[str, torch.Tensor]:
        inputs = {"pixel_values": torch.cat([image.pixels for image in images])}
        if grids := [image.grid for image in images if image.grid]:
            inputs["image_grid_thw"] = torch.tensor([(t, 2 * h, 2 * w) for t, h, w in grids])
        return inputs


def ids_and_spans(prompt: list[int | Image]) -> tuple[list[int], list[ImageSpan]]:
    """As the Http Server gives them to the Router."""
    ids: list[int] = []
    spans = []
    for part in prompt:
        if isinstance(part, Image):
            spans.append(ImageSpan(len(ids), len(part.ids), part.item_id, part.grid))
            ids += part.ids
        else:
            ids.append(part)
    return ids, spans


@functools.cache
def vision_language_class(family: str) -> tuple[type, type]:
    from transformers import AutoConfig, AutoModelForImageTextToText

    config_class = type(AutoConfig.for_model(family))
    return config_class, AutoModelForImageTextToText._model_mapping[config_class]


def make_vision_language(path: Path, family: str) -> VisionLanguage:
    config_class, model_class = vision_language_class(family)
    ids = {} if family in ONE_SIZE else {"image_token_id": IMAGE_ID}
    config = config_class(**FAMILIES[family], **ids)
    model = model_class(config).eval()
    randomise(model, torch.float32, 0.3)
    calm(model)
    model.save_pretrained(path)
    write_tokenizer(path, VOCAB)
    return VisionLanguage(path, model)
