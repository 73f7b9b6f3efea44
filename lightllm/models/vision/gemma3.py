"""Gemma 3 (Gemma team 2025, arXiv 2503.19786): SigLIP over images of one size, and squares of its patches averaged into one token each."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from lightllm.errors import InvalidModel
from lightllm.layers.norm import RMSNorm
from lightllm.model_folder.config import language_part
from lightllm.models.builder import Builder
from lightllm.models.config import ModelConfig
from lightllm.models.config_fields import Fields
from lightllm.models.vision.clip import ClipEncoder, ClipFields, read_clip
from lightllm.models.vision.layers import layer_norm, part_of
from lightllm.models.vision.model import VisionModel


@dataclasses.dataclass(frozen=True)
class Gemma3Fields:
    clip: ClipFields
    pooled: int
    """Patches in a row of the square that becomes one token."""
    text_size: int
    """The language model's hidden size."""


class Gemma3Vision(VisionModel):
    renaming = (
        (r"(model\.)?vision_tower\.(vision_model\.)?", "vision_tower."),
        (r"(model\.)?multi_modal_projector\.", "projector."),
    )

    def __init__(self, config: ModelConfig, build: Builder) -> None:
        super().__init__(config, build)
        self.fields: Gemma3Fields = config.extra
        self.patches_a_token = self.fields.pooled**2
        hidden, tower, projector = config.hidden_size, build.at("vision_tower"), build.at("projector")
        self.encoder = ClipEncoder(config, self.fields.clip, tower)
        self.post_norm = layer_norm(tower, "post_layernorm", hidden, config.norm_eps)
        # As all of Gemma's: what is added to 1, kept in float32.
        self.norm = RMSNorm(1.0 + projector.float32("mm_soft_emb_norm.weight", (hidden,)), config.norm_eps)
        self.projection = projector.vector("mm_input_projection_weight", (hidden, self.fields.text_size))

    @staticmethod
    def read_config(raw: Mapping[str, Any], folder: Path) -> ModelConfig:
        config = read_clip(Fields({"model_type": "siglip_vision_model", **part_of(raw, "vision_config")}), -1)
        clip: ClipFields = config.extra
        tokens = Fields(raw).positive("mm_tokens_per_image", 256)
        pooled, rest = divmod(clip.side, math.isqrt(tokens))
        if rest or math.isqrt(tokens) ** 2 != tokens:
            raise InvalidModel(
                f"config.json: {clip.side} x {clip.side} patches cannot become {tokens} tokens."
            )
        text_size = Fields(language_part(raw)).positive("hidden_size", 2304)
        return dataclasses.replace(config, extra=Gemma3Fields(clip, pooled, text_size))

    def forward(self, values: torch.Tensor, grids: Sequence[tuple[int, int]]) -> torch.Tensor:
        x = self.encoder.forward(values)
        side = self.fields.clip.side
        x = self.post_norm(x).transpose(1, 2).unflatten(2, (side, side))
        x = F.avg_pool2d(x, self.fields.pooled).flatten(2).transpose(1, 2).flatten(0, 1)
        return self.norm(x) @ self.projection
