"""Qwen-VL (Bai et al. 2023, arXiv 2308.12966): ViT-bigG over images of one size, and a resampler: queries that attend to all patches.

x = norm(patches + positions); layers h += Attention(norm(h)); h += MLP(norm(h)); k, v = norm(kv_proj(x)); then
norm(o(attention(norm(query) + p, k + p', v))) proj, where p are positions of the queries, and p' the same stretched to the patches.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from lightllm.models.builder import Builder
from lightllm.models.config import ModelConfig
from lightllm.models.config_fields import Fields
from lightllm.models.mlp import plain_mlp
from lightllm.models.vision.layers import (
    EncoderLayer,
    Segments,
    VisionAttention,
    encoder_layers,
    layer_norm,
    part_of,
    patch_linear,
    patches_of,
    read_encoder,
)
from lightllm.models.vision.model import VisionModel
from lightllm.ops.linear import PackedLinear, pack_linear
from lightllm.ops.segment_attention import segment_attention
from lightllm.weights.split import Part

_TRAINED_PATCHES = 256
"""Positions in the checkpoint: of the 224 x 224 pixels that ViT-bigG was trained with."""
_HEAD_DIM = 128
"""Elements of a head of the resampler."""


@dataclasses.dataclass(frozen=True)
class QwenVLFields:
    image_size: int
    """Height and width of every image, pixels."""
    patch_size: int
    """Height and width of a patch, pixels."""
    out_size: int
    """The language model's hidden size."""
    queries: int
    """Tokens of an image."""

    @property
    def side(self) -> int:
        """Patches in a row of the image."""
        return self.image_size // self.patch_size


class Resampler:
    def __init__(self, width: int, fields: QwenVLFields, eps: float, build: Builder) -> None:
        size, attention = fields.out_size, build.at("attn")
        self.kv_proj = build.whole_linear("kv_proj", width, size, bias=False) if width != size else None
        self.norm = layer_norm(build, "ln_kv", size, eps)
        share = build.even_part(size)
        parts = [Part(0, first + share.start, first + share.stop) for first in (0, size, 2 * size)]
        weights = attention.tensors.read("in_proj.weight", (3 * size, size), parts)
        biases = attention.tensors.read("in_proj.bias", (3 * size,), parts)
        q_proj, self.k_proj, self.v_proj = (
            _packed(build, weight, bias) for weight, bias in zip(weights, biases, strict=True)
        )
        self.o_proj = attention.row_linear("out_proj", size, size, bias=True)
        table = build.vector("pos_embed", (fields.queries, size))
        self.positions = stretched(table, fields.side)
        queries = layer_norm(build, "ln_q", size, eps)(build.vector("query", (fields.queries, size))) + table
        # The same for every image.
        self.q = q_proj(queries).unflatten(1, (-1, _HEAD_DIM))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: [N, patches, width]. Returns [N * queries, size]."""
        count, patches, _ = x.shape
        x = x.flatten(0, 1)
        x = self.norm(x if self.kv_proj is None else self.kv_proj(x))
        k, v = self.k_proj(x + self.positions.repeat(count, 1)), self.v_proj(x)
        k, v = (each.unflatten(1, (-1, _HEAD_DIM)) for each in (k, v))
        q, queries, kv_lengths = self.q.repeat(count, 1, 1), [len(self.q)] * count, [patches] * count
        return self.o_proj(segment_attention(q, k, v, queries, _HEAD_DIM**-0.5, kv_lengths).flatten(1))


class QwenVLVision(VisionModel):
    renaming = (
        (r"transformer\.visual\.attn_pool\.attn\.in_proj_", "attn_pool.attn.in_proj."),
        (r"transformer\.visual\.", ""),
    )

    def __init__(self, config: ModelConfig, build: Builder) -> None:
        super().__init__(config, build)
        fields: QwenVLFields = config.extra
        self.fields, width, size = fields, config.hidden_size, fields.patch_size
        self.patches_a_token = fields.side**2 // fields.queries
        self.patch_embedding = patch_linear(build, "conv1", width, (3, size, size), bias=False)
        self.positions = stretched(
            build.vector("positional_embedding", (_TRAINED_PATCHES, width)), fields.side
        )
        self.pre_norm = build.norm("ln_pre")

        def make_layer(build: Builder) -> EncoderLayer:
            attention = build.at("attn")
            return EncoderLayer(
                build.norm("ln_1"),
                VisionAttention(
                    config, attention.fused_qkv_linear("in_proj", "grouped"), attention.o_linear("out_proj")
                ),
                build.norm("ln_2"),
                plain_mlp(config, build.at("mlp"), "c_fc", "c_proj"),
            )

        self.layers = encoder_layers(build, "transformer.resblocks", make_layer, config.num_layers)
        self.resampler = Resampler(width, fields, config.norm_eps, build.at("attn_pool"))
        self.post_norm = layer_norm(build, "ln_post", fields.out_size, config.norm_eps)
        self.projection = build.vector("proj", (fields.out_size, fields.out_size))

    @staticmethod
    def read_config(raw: Mapping[str, Any], folder: Path) -> ModelConfig:
        fields = Fields(part_of(raw, "visual")).with_defaults(hidden_act="gelu")
        fields = fields.spelt(hidden_size="width", num_hidden_layers="layers", num_attention_heads="heads")
        inner = int(fields.positive("hidden_size") * fields.number("mlp_ratio"))
        config = read_encoder(fields.with_defaults(intermediate_size=inner))
        extra = QwenVLFields(
            fields.positive("image_size"),
            fields.positive("patch_size"),
            fields.positive("output_dim"),
            fields.positive("n_queries", 256),
        )
        return dataclasses.replace(config, extra=extra)

    def forward(self, values: torch.Tensor, grids: Sequence[tuple[int, int]]) -> torch.Tensor:
        patches = patches_of(values, self.fields.patch_size)
        count, each, _ = patches.shape
        x = self.patch_embedding(patches.flatten(0, 1)).unflatten(0, (count, each)) + self.positions
        x, segments = self.pre_norm(x.flatten(0, 1)), Segments([each] * count)
        for layer in self.layers:
            x = layer.forward(x, segments)
        return self.post_norm(self.resampler.forward(x.unflatten(0, (count, each)))) @ self.projection


def stretched(table: torch.Tensor, side: int) -> torch.Tensor:
    """From positions of a square grid [n, size] to those of a grid of side * side, by bicubic interpolation in float32."""
    trained = math.isqrt(len(table))
    if trained == side:
        return table
    grid = table.float().view(1, trained, trained, -1).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, size=(side, side), mode="bicubic", align_corners=False)
    return grid.permute(0, 2, 3, 1).flatten(0, 2).to(table.dtype)


def _packed(build: Builder, weight: torch.Tensor, bias: torch.Tensor) -> PackedLinear:
    rows = build.tensors.rows([bias]).load(build.activation_dtype)
    return build.keep(pack_linear(build.tensors.rows([weight]), rows))
