"""Mixtures of experts from a checkpoint that has each expert's matrices as tensors of their own."""

from __future__ import annotations

from collections.abc import Callable

import torch

from lightllm.layers.moe import MoE
from lightllm.models.builder import Builder
from lightllm.models.config import ModelConfig
from lightllm.models.mlp import GATED, gated_mlp
from lightllm.ops.linear import PlainLinear


def moe(
    config: ModelConfig,
    build: Builder,
    names: tuple[str, str, str] = ("gate_proj", "up_proj", "down_proj"),
    router: Callable[[torch.Tensor], torch.Tensor] | None = None,
    bias: torch.Tensor | None = None,
) -> MoE:
    """names: of an expert's three matrices under experts.<number>; router: `gate` in the model's dtype if it is not given;
    bias: see `choose_experts`. Shared experts are one MLP, `shared_experts`."""
    shape, whole = config.moe, build.config.moe
    assert shape is not None and whole is not None
    spec = shape.routing
    if router is None:
        router = build.whole_linear("gate", config.hidden_size, spec.num_experts, False)
    shared = None
    if shape.shared_width:
        shared = gated_mlp(config, build.at("shared_experts"), width=whole.shared_width, reduce=False).forward
    gate, up, down = names
    weights, hidden, width = build.at("experts"), config.hidden_size, whole.width
    experts = weights.experts(
        spec.num_experts,
        lambda number: weights.column_spec((f"{number}.{gate}", f"{number}.{up}"), hidden, width),
        lambda number: weights.row_spec(f"{number}.{down}", width, hidden),
    )
    return MoE(router, spec, bias, experts, GATED[config.activation], shared, build.group)


def float32_router(build: Builder, num_experts: int) -> Callable[[torch.Tensor], torch.Tensor]:
    """Logits in float32 whatever the model computes in, as DeepSeek has it."""
    router = build.keep(PlainLinear(build.float32("weight", (num_experts, build.config.hidden_size)), None))
    return lambda x: router(x.float())
