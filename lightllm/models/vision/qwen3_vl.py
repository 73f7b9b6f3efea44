"""Qwen3-VL (Qwen team 2025, arXiv 2511.21631): as Qwen2-VL, with learned positions beside the rotary ones, and DeepStack (Meng et al. 2024,
arXiv 2406.04334): what some layers of the encoder say is added to the residual stream behind the first layers of the language model.

An embedding is [of the encoder's last layer | of the first DeepStack layer | of the second | ...], each of the language model's size.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from lightllm.errors import InvalidModel
from lightllm.models.builder import Builder
from lightllm.models.config import ModelConfig
from lightllm.models.config_fields import Fields
from lightllm.models.mlp import plain_mlp
from lightllm.models.vision.grids import (
    Grid,
    GridFields,
    grid_attention,
    grid_patch_linear,
    patch_merger,
    patch_positions,
    read_grid_encoder,
    whole_images,
)
from lightllm.models.vision.layers import EncoderLayer, encoder_layers, layer_norm, part_of
from lightllm.models.vision.model import VisionModel


@dataclasses.dataclass(frozen=True)
class DeepStackFields(GridFields):
    table_side: int
    """The learned positions are a square of so many rows."""
    deepstack_layers: tuple[int, ...]
    """Layers whose outputs are part of the embedding."""


class Qwen3VLVision(VisionModel):
    renaming = ((r"(model\.)?visual\.", ""),)

    def __init__(self, config: ModelConfig, build: Builder) -> None:
        super().__init__(config, build)
        self.fields: DeepStackFields = config.extra
        self.patches_a_token = self.fields.square
        hidden, square = config.hidden_size, self.fields.square
        self.patch_embedding = grid_patch_linear(config, self.fields, build, bias=True)
        self.positions = build.vector("pos_embed.weight", (self.fields.table_side**2, hidden))

        def make_layer(build: Builder) -> EncoderLayer:
            return EncoderLayer(
                build.norm("norm1"),
                grid_attention(config, build.at("attn")),
                build.norm("norm2"),
                plain_mlp(config, build.at("mlp"), "linear_fc1", "linear_fc2"),
            )

        def merger(name: str, norm_size: int) -> Any:
            at = build.at(name)
            norm = layer_norm(at, "norm", norm_size, config.norm_eps)
            return patch_merger(config, self.fields, at, norm, norm_size, "linear_fc1", "linear_fc2")

        self.layers = encoder_layers(build, "blocks", make_layer, config.num_layers)
        self.merger = merger("merger", hidden)
        self.deepstack = {
            layer: merger(f"deepstack_merger_list.{number}", hidden * square)
            for number, layer in enumerate(self.fields.deepstack_layers)
        }

    @staticmethod
    def read_config(raw: Mapping[str, Any], folder: Path) -> ModelConfig:
        vision = {"hidden_act": "gelu_pytorch_tanh", **part_of(raw, "vision_config")}
        config = read_grid_encoder(vision, "out_hidden_size")
        side = math.isqrt(Fields(vision).positive("num_position_embeddings", 2304))
        layers = vision.get("deepstack_visual_indexes")
        if not isinstance(layers, list) or not all(isinstance(layer, int) for layer in layers):
            raise InvalidModel("config.json: vision_config lacks deepstack_visual_indexes, a list of layers.")
        grid = dataclasses.asdict(config.extra)
        extra = DeepStackFields(**grid, table_side=side, deepstack_layers=tuple(layers))
        return dataclasses.replace(config, extra=extra)

    def forward(self, values: torch.Tensor, grids: Sequence[Grid]) -> torch.Tensor:
        x = self.patch_embedding(values) + self._learned_positions(grids)
        segments = whole_images(grids, self.fields, self.config.head_dim, self.device)
        deepstack = []
        for index, layer in enumerate(self.layers):
            x = layer.forward(x, segments)
            if index in self.deepstack:
                deepstack.append(self.deepstack[index].forward(x))
        return torch.cat((self.merger.forward(x), *deepstack), dim=1)

    def _learned_positions(self, grids: Sequence[Grid]) -> torch.Tensor:
        """[patches, hidden]: the table, stretched to each image's grid by bilinear interpolation with aligned corners."""
        last = self.fields.table_side - 1
        positions = patch_positions(grids, self.fields.merge)
        sizes = torch.tensor(grids).repeat_interleave(
            torch.tensor([rows * columns for rows, columns in grids]), 0
        )
        places = positions * last / (sizes - 1).clamp(min=1)
        low = places.floor().long().clamp(max=last)
        high, share = (low + 1).clamp(max=last), places - low
        result = torch.zeros((), device=self.device)
        for row, row_share in ((low[:, 0], 1 - share[:, 0]), (high[:, 0], share[:, 0])):
            for column, column_share in ((low[:, 1], 1 - share[:, 1]), (high[:, 1], share[:, 1])):
                weight = (row_share * column_share)[:, None].to(self.device)
                result = result + weight * self.positions[(row * (last + 1) + column).to(self.device)]
        return result.to(self.activation_dtype)
