"""LLaVA-1.5 (Liu et al. 2023, arXiv 2310.03744): a CLIP encoder, of which the last but one layer counts, and two linear layers.

Checkpoints: converted ones (`vision_config` in config.json), and original ones, whose encoder is in the same checkpoint or in the
one that `mm_vision_tower` names.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from lightllm.errors import InvalidModel
from lightllm.model_folder.config import language_part, read_whole_config
from lightllm.model_folder.location import resolve_model_dir
from lightllm.models.builder import Builder
from lightllm.models.config import ACTIVATIONS, ModelConfig
from lightllm.models.config_fields import Fields
from lightllm.models.mlp import PLAIN
from lightllm.models.vision.checkpoint_names import RenamedTensors
from lightllm.models.vision.clip import ClipEncoder, ClipFields, read_clip
from lightllm.models.vision.layers import part_of
from lightllm.models.vision.model import VisionModel
from lightllm.weights.checkpoint import open_checkpoint

CLIP_L_336 = {
    "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16, "image_size": 336,
    "patch_size": 14,
}  # fmt: skip
"""CLIP ViT-L/14-336, the encoder of every LLaVA-1.5: for a checkpoint that holds it and does not describe it."""


@dataclasses.dataclass(frozen=True)
class LlavaFields:
    clip: ClipFields
    drops_class_token: bool
    text_size: int
    """The language model's hidden size."""
    activation: str
    bias: bool


class LlavaVision(VisionModel):
    renaming = (
        (r"(model\.)?vision_tower\.(vision_tower\.)?(vision_model\.)?", "vision_tower."),
        (r"vision_model\.", "vision_tower."),
        (r"(model\.)?multi_modal_projector\.", "projector."),
        (r"model\.mm_projector\.0\.", "projector.linear_1."),
        (r"model\.mm_projector\.2\.", "projector.linear_2."),
    )

    def __init__(self, config: ModelConfig, build: Builder) -> None:
        super().__init__(config, build)
        fields: LlavaFields = config.extra
        self.encoder = ClipEncoder(config, fields.clip, build.at("vision_tower"))
        build.ignore_under("vision_tower.post_layernorm.")
        self.drops = int(fields.drops_class_token)
        projector, size = build.at("projector"), fields.text_size
        self.linear_1 = projector.column_linear(("linear_1",), config.hidden_size, size, fields.bias)
        self.activation = PLAIN[fields.activation]
        self.linear_2 = projector.row_linear("linear_2", size, size, fields.bias)

    @classmethod
    def open(cls, raw: Mapping[str, Any], folder: Path) -> RenamedTensors:
        tensors = super().open(raw, folder)
        name = raw.get("mm_vision_tower")
        if not isinstance(name, str) or any(each.startswith("vision_tower.") for each in tensors.names()):
            return tensors
        tower = _local_tower(raw, folder) or resolve_model_dir(name, lambda line: None)
        return tensors.beside(open_checkpoint(str(tower)), cls.renaming)

    @staticmethod
    def read_config(raw: Mapping[str, Any], folder: Path) -> ModelConfig:
        fields = Fields(raw)
        original = "mm_vision_tower" in raw
        if original:
            tower = _local_tower(raw, folder)
            described = read_whole_config(str(tower)) if tower else {}
            kind = fields.get("mm_projector_type", "linear")
            if kind != "mlp2x_gelu":
                raise InvalidModel(
                    f"config.json: mm_projector_type {kind!r} is not supported; mlp2x_gelu is."
                )
            described = described.get("vision_config", described)
        else:
            described = part_of(raw, "vision_config")
        layer = fields.get("mm_vision_select_layer" if original else "vision_feature_layer", -2)
        if not isinstance(layer, int):
            raise InvalidModel(
                f"config.json: vision_feature_layer {layer!r} is not supported; one number is."
            )
        config = read_clip(Fields({**CLIP_L_336, **described}), layer)
        select = fields.get("mm_vision_select_feature" if original else "vision_feature_select_strategy")
        text = Fields(raw if original else {"hidden_size": 4096, **language_part(raw)})
        extra = LlavaFields(
            config.extra,
            drops_class_token=config.extra.is_clip and select not in ("full", "cls_patch"),
            text_size=text.positive("hidden_size"),
            activation=ACTIVATIONS.get(fields.get("projector_hidden_act", "gelu"), "gelu"),
            bias=fields.flag("multimodal_projector_bias", True),
        )
        return dataclasses.replace(config, extra=extra)

    def forward(self, values: torch.Tensor, grids: Sequence[tuple[int, int]]) -> torch.Tensor:
        x = self.encoder.forward(values)[:, self.drops :].flatten(0, 1)
        return self.linear_2(self.activation(self.linear_1(x)))


def _local_tower(raw: Mapping[str, Any], folder: Path) -> Path | None:
    """The folder that `mm_vision_tower` names, absolute or inside the model's."""
    named = folder / str(raw["mm_vision_tower"])
    return named if (named / "config.json").is_file() else None
