"""Images that keep their proportions (Qwen2-VL and later): a grid of patches each, rotary positions of rows and columns, and
squares of neighbouring patches that become one token.

The processor puts patches in the order of those squares: one square after the other, its patches row by row.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F

from lightllm.layers.linear import RowLinear
from lightllm.layers.norm import Norm
from lightllm.models.builder import Builder
from lightllm.models.config import ModelConfig
from lightllm.models.config_fields import Fields
from lightllm.models.vision.layers import Segments, VisionAttention, patch_linear, read_encoder
from lightllm.ops.linear import PackedLinear
from lightllm.ops.rotary import inverse_frequencies

Grid = tuple[int, int]
"""Rows and columns of patches."""

_THETA = 10000.0


@dataclasses.dataclass(frozen=True)
class GridFields:
    patch_size: int
    """Height and width of a patch, pixels."""
    frames: int
    """How often a patch of an image is repeated: as many frames of a film are one."""
    merge: int
    """Patches in a row of the square that becomes one token."""
    out_size: int
    """The language model's hidden size."""

    @property
    def square(self) -> int:
        """Patches that become one token."""
        return self.merge**2


def read_grid_encoder(vision: Mapping[str, Any], out_size: str, **differences: Any) -> ModelConfig:
    """The shape of a `vision_config` in Qwen's spelling; out_size: its field for the language model's hidden size."""
    fields = Fields(vision).spelt(num_hidden_layers="depth", num_attention_heads="num_heads")
    config = read_encoder(fields, **differences)
    extra = GridFields(
        fields.positive("patch_size"),
        fields.positive("temporal_patch_size", 2),
        fields.positive("spatial_merge_size", 2),
        fields.positive(out_size),
    )
    return dataclasses.replace(config, extra=extra)


def grid_patch_linear(config: ModelConfig, fields: GridFields, build: Builder, bias: bool) -> PackedLinear:
    kernel = (3, fields.frames, fields.patch_size, fields.patch_size)
    return patch_linear(build, "patch_embed.proj", config.hidden_size, kernel, bias)


def grid_attention(config: ModelConfig, build: Builder) -> VisionAttention:
    return VisionAttention(config, build.fused_qkv_linear("qkv", "stacked"), build.o_linear("proj"))


class PatchMerger:
    """down(gelu(up([norm of the patches of a square, side by side])))"""

    def __init__(self, norm: Norm, norm_size: int, up: PackedLinear, down: RowLinear, width: int) -> None:
        """norm_size: of a patch, or of the whole square; width: of a square."""
        self.norm, self.norm_size, self.up, self.down, self.width = norm, norm_size, up, down, width

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: [patches, hidden]. Returns [patches / patches of a square, the language model's hidden size]."""
        x = self.norm(x.view(-1, self.norm_size)).view(-1, self.width)
        return self.down(F.gelu(self.up(x), approximate="none"))


def patch_merger(
    config: ModelConfig, fields: GridFields, build: Builder, norm: Norm, norm_size: int, up: str, down: str
) -> PatchMerger:
    width = config.hidden_size * fields.square
    up_linear = build.column_linear((up,), width, width, bias=True)
    return PatchMerger(
        norm, norm_size, up_linear, build.row_linear(down, width, fields.out_size, bias=True), width
    )


def patch_positions(grids: Sequence[Grid], merge: int) -> torch.Tensor:
    """int64 [patches, 2]: the row and the column of every patch, in the processor's order."""
    positions = []
    for rows, columns in grids:
        squares = torch.arange(rows * columns).view(rows // merge, merge, columns // merge, merge)
        index = squares.transpose(1, 2).flatten()
        positions.append(torch.stack((index // columns, index % columns), dim=1))
    return torch.cat(positions)


def axial_rotary(
    positions: torch.Tensor, head_dim: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines, float32 [patches, 1, head_dim]: the first half of the pairs turns with the row, the other with the column."""
    inverse, _ = inverse_frequencies(head_dim // 2, _THETA, {"rope_type": "default"})
    angles = (positions[:, :, None] * inverse).flatten(1).repeat(1, 2)[:, None].to(device)
    return angles.cos(), angles.sin()


def whole_images(grids: Sequence[Grid], fields: GridFields, head_dim: int, device: torch.device) -> Segments:
    """Every patch sees all of its image."""
    rotary = axial_rotary(patch_positions(grids, fields.merge), head_dim, device)
    return Segments([rows * columns for rows, columns in grids], rotary)
