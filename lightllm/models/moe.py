"""Mixtures of experts from a checkpoint that has each expert's matrices as tensors of their own."""

from __future__ import annotations

from collections.abc import Callable

import torch

from lightllm.layers.moe import Float32Router, MoE
from lightllm.models.builder import Builder
from lightllm.models.config import ModelConfig
from lightllm.models.mlp import GATED, gated_mlp
from lightllm.ops.moe_experts import Expert, PackedExperts, StackedExperts, pack_experts
from lightllm.weights.freed_memory import give_back_freed_memory


def moe(
    config: ModelConfig,
    build: Builder,
    names: tuple[str, str, str] = ("gate_proj", "up_proj", "down_proj"),
    router: Callable[[torch.Tensor], torch.Tensor] | None = None,
    bias: torch.Tensor | None = None,
) -> MoE:
    """names: of an expert's three matrices under experts.<number>; router: `gate` in the model's dtype if it is not given;
    bias: see `choose_experts`. Shared experts are one MLP, `shared_experts`."""
    shape = config.moe
    assert shape is not None
    spec = shape.routing
    if router is None:
        router = build.whole_linear("gate", config.hidden_size, spec.num_experts, False)
    shared = None
    if shape.shared_width:
        whole = build.config.moe.shared_width  # type: ignore[union-attr]
        shared = gated_mlp(config, build.at("shared_experts"), width=whole, reduce=False).forward
    experts = _separate_experts(build.at("experts"), spec.num_experts, names)
    return MoE(router, spec, bias, experts, GATED[config.activation], shared, build.group)


def float32_router(build: Builder, num_experts: int) -> Float32Router:
    weight = build.float32("weight", (num_experts, build.config.hidden_size))
    return build.keep(Float32Router(weight))


def _separate_experts(
    build: Builder, count: int, names: tuple[str, str, str]
) -> PackedExperts | StackedExperts:
    gate, up, down = names
    whole = build.config.moe
    assert whole is not None
    hidden, width = build.config.hidden_size, whole.width

    def expert(number: int) -> Expert:
        give_back_freed_memory()  # a layer of experts is many times as large as its largest matrix
        one = build.at(str(number))
        gate_up = one.share((f"{gate}.weight", f"{up}.weight"), (width, hidden), 0)
        return Expert(gate_up, one.share((f"{down}.weight",), (hidden, width), 1))

    return build.keep(pack_experts(build.device, count, expert))
