"""InternVL-Chat 1.5, 2 and 2.5 (Chen et al. 2024, arXiv 2404.16821 and 2412.05271): InternViT over tiles of one size, squares of 2 x 2
patches put side by side ("pixel shuffle"), and a norm and two linear layers.

x = [class token, patches] + positions; h += ls1 * Attention(norm(h)); h += ls2 * MLP(norm(h)). Checkpoints have the names of the
published model's own code or those of transformers' conversion.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from lightllm.errors import InvalidModel
from lightllm.layers.norm import Norm
from lightllm.model_folder.config import language_part
from lightllm.models.builder import Builder
from lightllm.models.config import ModelConfig
from lightllm.models.config_fields import Fields
from lightllm.models.mlp import MLP, plain_mlp
from lightllm.models.vision.layers import (
    Segments,
    VisionAttention,
    encoder_layers,
    layer_norm,
    layers_until,
    part_of,
    patch_linear,
    patches_of,
    read_encoder,
    side_of,
)
from lightllm.models.vision.model import VisionModel

_PROJECTOR_EPS = 1e-5
"""Of the projector's LayerNorm: torch's default, in no config.json."""


@dataclasses.dataclass(frozen=True)
class InternFields:
    image_size: int
    """Height and width of a tile, pixels."""
    patch_size: int
    """Height and width of a patch, pixels."""
    layers_run: int
    """Layers that are computed; what follows them in the checkpoint is not read."""
    merge: int
    """Patches in a row of the square that becomes one token."""
    qk_norm: bool
    """RMSNorm over all query heads at once, and over all key heads at once."""
    text_size: int
    """The language model's hidden size."""

    @property
    def side(self) -> int:
        """Patches in a row of a tile."""
        return self.image_size // self.patch_size


class InternLayer:
    """h += ls1 * attention(norm(h)); h += ls2 * mlp(norm(h))"""

    def __init__(
        self,
        norm1: Norm,
        attention: VisionAttention,
        ls1: torch.Tensor,
        norm2: Norm,
        mlp: MLP,
        ls2: torch.Tensor,
    ) -> None:
        self.norm1, self.attention, self.ls1 = norm1, attention, ls1
        self.norm2, self.mlp, self.ls2 = norm2, mlp, ls2

    def forward(self, x: torch.Tensor, segments: Segments) -> torch.Tensor:
        """x: [T, hidden]. Returns a tensor of the same shape."""
        x = x + self.ls1 * self.attention.forward(self.norm1(x), segments)
        return x + self.ls2 * self.mlp.forward(self.norm2(x))


class InternVLVision(VisionModel):
    renaming = (
        (r"mlp1\.", "mlp1."),
        (r"(model\.)?multi_modal_projector\.layer_norm\.", "mlp1.0."),
        (r"(model\.)?multi_modal_projector\.linear_1\.", "mlp1.1."),
        (r"(model\.)?multi_modal_projector\.linear_2\.", "mlp1.3."),
        (r"vision_model\.", ""),
        (r"(model\.)?vision_tower\.embeddings\.cls_token", "embeddings.class_embedding"),
        (r"(model\.)?vision_tower\.embeddings\.position_embeddings", "embeddings.position_embedding"),
        (r"(model\.)?vision_tower\.embeddings\.patch_embeddings\.projection\.", "embeddings.patch_embedding."),
        *(
            (rf"(model\.)?vision_tower\.encoder\.layer\.(?P<layer>\d+)\.{theirs}", rf"encoder.layers.\g<layer>.{ours}")
            for theirs, ours in (
                (r"attention\.projection_layer\.", "attn.proj."), (r"attention\.", "attn."), ("lambda_", "ls"),
                (r"layernorm_before\.", "norm1."), (r"layernorm_after\.", "norm2."), (r"mlp\.", "mlp."),
            )
        ),
    )  # fmt: skip

    def __init__(self, config: ModelConfig, build: Builder) -> None:
        super().__init__(config, build)
        fields: InternFields = config.extra
        self.fields, hidden, size = fields, config.hidden_size, fields.patch_size
        self.patches_a_token = fields.merge**2
        embeddings = build.at("embeddings")
        self.patch_embedding = patch_linear(embeddings, "patch_embedding", hidden, (3, size, size), bias=True)
        self.class_token = embeddings.vector("class_embedding", (1, 1, hidden))
        self.positions = embeddings.vector("position_embedding", (1, fields.side**2 + 1, hidden))
        self.layers = encoder_layers(
            build, "encoder.layers", self._make_layer, fields.layers_run, config.num_layers
        )
        projector, width = build.at("mlp1"), hidden * fields.merge**2
        self.norm = layer_norm(projector, "0", width, _PROJECTOR_EPS)
        self.linear_1 = projector.column_linear(("1",), width, fields.text_size, bias=True)
        self.linear_2 = projector.row_linear("3", fields.text_size, fields.text_size, bias=True)

    def _make_layer(self, build: Builder) -> InternLayer:
        config, attention, size = self.config, build.at("attn"), (self.config.hidden_size,)
        fused = attention.tensors.has("qkv.weight")
        qkv = (
            attention.fused_qkv_linear("qkv", "stacked")
            if fused
            else attention.qkv_linear("q_proj", "k_proj", "v_proj")
        )
        qk_norm = attention.whole_qk_norm("q_norm", "k_norm") if self.fields.qk_norm else None
        return InternLayer(
            build.norm("norm1"),
            VisionAttention(config, qkv, attention.o_linear("proj"), qk_norm),
            build.vector("ls1", size),
            build.norm("norm2"),
            plain_mlp(config, build.at("mlp"), "fc1", "fc2"),
            build.vector("ls2", size),
        )

    @staticmethod
    def read_config(raw: Mapping[str, Any], folder: Path) -> ModelConfig:
        fields, vision = Fields(raw), Fields(part_of(raw, "vision_config")).with_defaults(hidden_act="gelu")
        if vision.get("model_type") == "intern_vit_6b":  # what the published model's own code has by default
            vision = vision.with_defaults(norm_type="rms_norm", qk_normalization=True, qkv_bias=False)
        norm = vision.get("norm_type", "layer_norm")
        if norm not in ("layer_norm", "rms_norm"):
            raise InvalidModel(
                f"config.json: norm_type {norm!r} is not supported; layer_norm and rms_norm are."
            )
        merge = round(1 / fields.number("downsample_ratio", 0.5))
        if fields.get("ps_version", "v2") != "v2":
            raise InvalidModel("config.json: ps_version must be v2, as of InternVL-Chat 1.5 and later.")
        bias = vision.flag("qkv_bias", vision.flag("attention_bias"))
        config = read_encoder(vision, norm=norm, norm_bias=norm == "layer_norm", qkv_bias=bias)
        layer = fields.get("select_layer", fields.get("vision_feature_layer", -1))
        extra = InternFields(
            image_size=side_of(vision, "image_size"),
            patch_size=side_of(vision, "patch_size"),
            layers_run=layers_until(layer, config.num_layers),
            merge=merge,
            qk_norm=vision.flag("qk_normalization", vision.flag("use_qk_norm")),
            text_size=Fields(language_part(raw)).positive("hidden_size"),
        )
        return dataclasses.replace(config, extra=extra)

    def forward(self, values: torch.Tensor, grids: Sequence[tuple[int, int]]) -> torch.Tensor:
        count, side = len(values), self.fields.side
        x = self.patch_embedding(patches_of(values, self.fields.patch_size).flatten(0, 1)).unflatten(
            0, (count, -1)
        )
        x = (torch.cat((self.class_token.expand(count, 1, -1), x), dim=1) + self.positions).flatten(0, 1)
        segments = Segments([side**2 + 1] * count)
        for layer in self.layers:
            x = layer.forward(x, segments)
        x = squares(x.unflatten(0, (count, -1))[:, 1:].unflatten(1, (side, side)), self.fields.merge)
        return self.linear_2(F.gelu(self.linear_1(self.norm(x)), approximate="none"))


def squares(x: torch.Tensor, merge: int) -> torch.Tensor:
    """From tiles [N, rows, columns, size] to tokens [N * rows / merge * columns / merge, merge² * size]: the patches of each square
    row by row, the squares too."""
    count, rows, columns, size = x.shape
    split = x.view(count, rows // merge, merge, columns // merge, merge, size)
    return split.transpose(2, 3).reshape(-1, merge * merge * size)
