"""CLIP's image encoder (Radford et al. 2021, arXiv 2103.00020) and SigLIP's (Zhai et al. 2023, arXiv 2303.15343), without heads.

x = [class token,] patches + positions; CLIP: x = norm(x); then layers h += Attention(norm(h)); h += MLP(norm(h)).
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from lightllm.models.builder import Builder
from lightllm.models.config import ModelConfig
from lightllm.models.config_fields import Fields
from lightllm.models.mlp import plain_mlp
from lightllm.models.vision.layers import (
    EncoderLayer,
    Segments,
    VisionAttention,
    encoder_layers,
    layers_until,
    patch_linear,
    patches_of,
    read_encoder,
    side_of,
)


@dataclasses.dataclass(frozen=True)
class ClipFields:
    image_size: int
    """Height and width of every image, pixels."""
    patch_size: int
    """Height and width of a patch, pixels."""
    is_clip: bool
    """There are a class token and a norm before the layers."""
    layers_run: int
    """Layers that are computed; what follows them in the checkpoint is not read."""

    @property
    def side(self) -> int:
        """Patches in a row of the image."""
        return self.image_size // self.patch_size


def read_clip(fields: Fields, layer: Any) -> ModelConfig:
    """fields: of a `vision_config`; layer: the one whose output counts, see `layers_until`."""
    is_clip = fields.get("model_type", "clip_vision_model") != "siglip_vision_model"
    fields = fields.with_defaults(
        hidden_act="quick_gelu" if is_clip else "gelu_pytorch_tanh", layer_norm_eps=1e-5 if is_clip else 1e-6
    )
    config = read_encoder(fields)
    layers_run = layers_until(layer, config.num_layers)
    extra = ClipFields(side_of(fields, "image_size"), side_of(fields, "patch_size"), is_clip, layers_run)
    return dataclasses.replace(config, extra=extra)


class ClipEncoder:
    def __init__(self, config: ModelConfig, fields: ClipFields, build: Builder) -> None:
        """build: at the encoder."""
        embeddings, hidden, size = build.at("embeddings"), config.hidden_size, fields.patch_size
        self.patch_size = size
        self.patch_embedding = patch_linear(
            embeddings, "patch_embedding", hidden, (3, size, size), bias=not fields.is_clip
        )
        positions = fields.side**2 + fields.is_clip
        self.positions = embeddings.vector("position_embedding.weight", (positions, hidden))
        self.class_token = embeddings.vector("class_embedding", (hidden,)) if fields.is_clip else None
        self.pre_norm = build.norm("pre_layrnorm") if fields.is_clip else None

        def make_layer(build: Builder) -> EncoderLayer:
            attention = build.at("self_attn")
            return EncoderLayer(
                build.norm("layer_norm1"),
                VisionAttention(
                    config, attention.qkv_linear("q_proj", "k_proj", "v_proj"), attention.o_linear("out_proj")
                ),
                build.norm("layer_norm2"),
                plain_mlp(config, build.at("mlp"), "fc1", "fc2"),
            )

        self.layers = encoder_layers(
            build, "encoder.layers", make_layer, fields.layers_run, config.num_layers
        )
        build.ignore_under("head.")  # SigLIP's pooling head
        build.ignore_under("embeddings.position_ids")

    def forward(self, tiles: torch.Tensor) -> torch.Tensor:
        """tiles: [N, 3, height, width]. Returns [N, tokens, hidden], the class token first if there is one."""
        x = self.patch_embedding(patches_of(tiles, self.patch_size).flatten(0, 1)).unflatten(
            0, (len(tiles), -1)
        )
        if self.class_token is not None:
            x = torch.cat((self.class_token.expand(len(x), 1, -1), x), dim=1)
        x = x + self.positions
        segments, flat = Segments([x.shape[1]] * len(x)), x.flatten(0, 1)
        if self.pre_norm is not None:
            flat = self.pre_norm(flat)
        for layer in self.layers:
            flat = layer.forward(flat, segments)
        return flat.view(x.shape)
