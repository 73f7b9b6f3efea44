"""The two kinds of MLP: with a gate (SwiGLU, GeGLU) and without."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
import torch.nn.functional as F

from lightllm.layers.linear import RowLinear
from lightllm.models.builder import Builder
from lightllm.models.config import ModelConfig
from lightllm.ops.gated_activation import gelu_and_mul, silu_and_mul
from lightllm.ops.linear import PackedLinear

GATED: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "silu": silu_and_mul,
    "gelu": functools.partial(gelu_and_mul, approximate="none"),
    "gelu_tanh": functools.partial(gelu_and_mul, approximate="tanh"),
}
"""From [T, 2 * width], the gate in the first half, to [T, width]."""
PLAIN: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "silu": F.silu,
    "gelu": functools.partial(F.gelu, approximate="none"),
    "gelu_tanh": functools.partial(F.gelu, approximate="tanh"),
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
}
"""From [T, width] to [T, width]; quick_gelu is CLIP's."""


class MLP:
    """down(activation(up(x))); with a gate, up's outputs are the gate's and its own side by side: see `GATED`."""

    def __init__(
        self, activation: Callable[[torch.Tensor], torch.Tensor], up_proj: PackedLinear, down_proj: RowLinear
    ) -> None:
        self.activation, self.up_proj, self.down_proj = activation, up_proj, down_proj

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: [T, hidden]. Returns the same shape, added up over all ranks."""
        return self.down_proj(self.activation(self.up_proj(x)))


def gated_mlp(
    config: ModelConfig,
    build: Builder,
    gate: str = "gate_proj",
    up: str = "up_proj",
    down: str = "down_proj",
    width: int | None = None,
    reduce: bool = True,
) -> MLP:
    """Gate and up from two tensors. width: if it is not `intermediate_size`; reduce: see `RowLinear`."""
    hidden, inner = config.hidden_size, width or build.config.intermediate_size
    gate_up_proj = build.column_linear((gate, up), hidden, inner, config.mlp_bias)
    down_proj = build.row_linear(down, inner, hidden, config.mlp_bias, reduce)
    return MLP(GATED[config.activation], gate_up_proj, down_proj)


def fused_gated_mlp(
    config: ModelConfig, build: Builder, gate_up: str = "gate_up_proj", down: str = "down_proj"
) -> MLP:
    """Gate and up from one tensor, the gate first."""
    hidden, inner = config.hidden_size, build.config.intermediate_size
    gate_up_proj = build.column_linear((gate_up,), hidden, inner, config.mlp_bias, each=2)
    return MLP(GATED[config.activation], gate_up_proj, build.row_linear(down, inner, hidden, config.mlp_bias))


def plain_mlp(config: ModelConfig, build: Builder, up: str, down: str) -> MLP:
    hidden, inner = config.hidden_size, build.config.intermediate_size
    up_proj = build.column_linear((up,), hidden, inner, config.mlp_bias)
    return MLP(PLAIN[config.activation], up_proj, build.row_linear(down, inner, hidden, config.mlp_bias))
