"""`VisionModel`: one tensor-parallel rank's part of a vision encoder and its projector. Used through `encode`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch

from lightllm.models.builder import Builder
from lightllm.models.config import ModelConfig
from lightllm.models.vision.checkpoint_names import RenamedTensors, Renaming
from lightllm.weights.checkpoint import open_checkpoint


@dataclasses.dataclass(frozen=True)
class Pixels:
    """One image as the encoder takes it."""

    values: torch.Tensor
    """float32. Of families with images of one size: [tiles, 3, height, width]; of those with a `grid`: patches
    [grid rows * grid columns, 3 * frames * patch height * patch width] in the order of the family's processor."""
    grid: tuple[int, int] | None = None
    """Rows and columns of patches, where every image has its own size."""


class VisionModel:
    """A family says in `read_config` what shape it has, and in `forward` what it computes."""

    renaming: ClassVar[Renaming] = ()
    """From names of tensors in published checkpoints to those that the family reads them under."""
    patches_a_token = 1
    """How many patches of an image become one token of the prompt."""
    weight_bytes = 0
    """Of all layers, after packing; set when they are loaded."""

    def __init__(self, config: ModelConfig, build: Builder) -> None:
        """config: this rank's shape; build: reads the weights."""
        self.config = config
        self.device, self.activation_dtype = build.device, build.activation_dtype

    @classmethod
    def open(cls, raw: Mapping[str, Any], folder: Path) -> RenamedTensors:
        """The tensors of encoder and projector. raw: config.json as it is; folder: of the model. Raises `InvalidModel`."""
        return RenamedTensors([(open_checkpoint(str(folder)), cls.renaming)])

    @staticmethod
    def read_config(raw: Mapping[str, Any], folder: Path) -> ModelConfig:
        """The encoder's shape, and in `extra` what else the family needs. Raises `InvalidModel` that names the field."""
        raise NotImplementedError

    def activation_bytes(self, tokens: int) -> int:
        """What `encode` needs beside the weights for images of so many tokens together, from shapes: one layer's activations over
        all patches. An estimate, from above; attention keeps no scores."""
        config = self.config
        patch = (12 * config.hidden_size + 4 * config.intermediate_size) * self.activation_dtype.itemsize
        return tokens * self.patches_a_token * patch

    @torch.inference_mode()
    def encode(self, images: Sequence[Pixels]) -> list[torch.Tensor]:
        """An embedding [tokens, size] of each image, in the activation dtype; all images are computed together.

        size: the language model's hidden size; in Qwen3-VL a multiple of it, see there.
        """
        values = torch.cat([image.values for image in images]).to(self.device, self.activation_dtype)
        grids = [image.grid for image in images if image.grid is not None]
        embeddings = self.forward(values, grids)
        # In every family an image has as many tokens a tile, or a patch, as any other.
        return list(embeddings.split([len(i.values) * len(embeddings) // len(values) for i in images]))

    def forward(self, values: torch.Tensor, grids: Sequence[tuple[int, int]]) -> torch.Tensor:
        """values, grids: of all images, see `Pixels`. Returns [tokens, size] of one image after the other."""
        raise NotImplementedError
