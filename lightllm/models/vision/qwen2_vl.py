"""Qwen2-VL (Wang et al. 2024, arXiv 2409.12191): a Vision Transformer over images of any size, with rotary positions of rows and columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from lightllm.models.builder import Builder
from lightllm.models.config import ModelConfig
from lightllm.models.config_fields import Fields
from lightllm.models.mlp import MLP, plain_mlp
from lightllm.models.vision.grids import (
    Grid,
    GridFields,
    grid_attention,
    grid_patch_linear,
    patch_merger,
    read_grid_encoder,
    whole_images,
)
from lightllm.models.vision.layers import EncoderLayer, encoder_layers, part_of
from lightllm.models.vision.model import VisionModel


class Qwen2VLVision(VisionModel):
    renaming = ((r"(model\.)?visual\.", ""),)

    def __init__(self, config: ModelConfig, build: Builder) -> None:
        super().__init__(config, build)
        self.fields: GridFields = config.extra
        self.patches_a_token = self.fields.square
        self.patch_embedding = grid_patch_linear(config, self.fields, build, bias=False)

        def make_layer(build: Builder) -> EncoderLayer:
            return EncoderLayer(
                build.norm("norm1"),
                grid_attention(config, build.at("attn")),
                build.norm("norm2"),
                self.make_mlp(build.at("mlp")),
            )

        self.layers = encoder_layers(build, "blocks", make_layer, config.num_layers)
        norm = build.norm("merger.ln_q")
        self.merger = patch_merger(
            config, self.fields, build.at("merger.mlp"), norm, config.hidden_size, "0", "2"
        )

    def make_mlp(self, build: Builder) -> MLP:
        return plain_mlp(self.config, build, "fc1", "fc2")

    @staticmethod
    def read_config(raw: Mapping[str, Any], folder: Path) -> ModelConfig:
        vision = part_of(raw, "vision_config")
        fields = Fields(vision).with_defaults(embed_dim=1280, mlp_ratio=4)
        width = fields.positive("embed_dim")
        inner = int(width * fields.number("mlp_ratio"))
        own = {"hidden_act": "quick_gelu", **vision, "out_hidden_size": vision.get("hidden_size")}
        return read_grid_encoder({**own, "hidden_size": width, "intermediate_size": inner}, "out_hidden_size")

    def forward(self, values: torch.Tensor, grids: Sequence[Grid]) -> torch.Tensor:
        x = self.patch_embedding(values)
        segments = whole_images(grids, self.fields, self.config.head_dim, self.device)
        for layer in self.layers:
            x = layer.forward(x, segments)
        return self.merger.forward(x)
