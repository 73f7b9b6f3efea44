"""Qwen2.5-VL (Bai et al. 2025, arXiv 2502.13923): as Qwen2-VL, with RMSNorm, SwiGLU, and attention inside windows in most layers."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from lightllm.errors import InvalidModel
from lightllm.models.builder import Builder
from lightllm.models.config import ModelConfig
from lightllm.models.config_fields import Fields
from lightllm.models.mlp import MLP, gated_mlp
from lightllm.models.vision.grids import Grid, GridFields, axial_rotary, patch_positions, read_grid_encoder
from lightllm.models.vision.layers import Segments, part_of
from lightllm.models.vision.qwen2_vl import Qwen2VLVision


@dataclasses.dataclass(frozen=True)
class WindowFields(GridFields):
    window: int
    """Tokens in a row of a window."""
    full_layers: frozenset[int]
    """Layers in which patches see all of their image."""


class Qwen25VLVision(Qwen2VLVision):
    fields: WindowFields

    def make_mlp(self, build: Builder) -> MLP:
        return gated_mlp(self.config, build)

    @staticmethod
    def read_config(raw: Mapping[str, Any], folder: Path) -> ModelConfig:
        vision = {"hidden_act": "silu", **part_of(raw, "vision_config")}
        config = read_grid_encoder(vision, "out_hidden_size", norm="rms_norm", norm_bias=False)
        grid: GridFields = config.extra
        window = Fields(vision).positive("window_size", 112) // (grid.merge * grid.patch_size)
        full = vision.get("fullatt_block_indexes")
        if not isinstance(full, list) or window < 1:
            raise InvalidModel(
                "config.json: vision_config lacks fullatt_block_indexes, or its window_size is too small."
            )
        extra = WindowFields(**dataclasses.asdict(grid), window=window, full_layers=frozenset(full))
        return dataclasses.replace(config, extra=extra)

    def forward(self, values: torch.Tensor, grids: Sequence[Grid]) -> torch.Tensor:
        square = self.fields.square
        order, lengths = windows(grids, self.fields.merge, self.fields.window)
        # Tokens of a window stand together: all layers see this order, and the last step undoes it.
        positions = patch_positions(grids, self.fields.merge).view(-1, square, 2)[order].flatten(0, 1)
        rotary = axial_rotary(positions, self.config.head_dim, self.device)
        inside = Segments([length * square for length in lengths], rotary)
        whole = Segments([rows * columns for rows, columns in grids], rotary)
        order = order.to(self.device)
        x = self.patch_embedding(values).unflatten(0, (-1, square))[order].flatten(0, 1)
        for index, layer in enumerate(self.layers):
            x = layer.forward(x, whole if index in self.fields.full_layers else inside)
        return self.merger.forward(x)[order.argsort()]


def windows(grids: Sequence[Grid], merge: int, side: int) -> tuple[torch.Tensor, list[int]]:
    """Tokens of all images, window by window (int64), and how many each window has: at the right and the lower edge of an image
    fewer than side * side."""
    order: list[torch.Tensor] = []
    first = 0
    for rows, columns in ((rows // merge, columns // merge) for rows, columns in grids):
        tokens = torch.arange(first, first + rows * columns).view(rows, columns)
        order += [
            tokens[top : top + side, left : left + side].flatten()
            for top in range(0, rows, side)
            for left in range(0, columns, side)
        ]
        first += rows * columns
    return torch.cat(order), [len(window) for window in order]
