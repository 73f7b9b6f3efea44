"""Architectures with experts, and those with latent attention."""

from __future__ import annotations

from typing import Any

from lightllm.models.config import ModelConfig, read_llama_like, read_windows
from lightllm.models.config_fields import Fields
from lightllm.models.dialects.like_llama import qwen_windows
from lightllm.models.moe_config import MoeConfig
from lightllm.ops.routing_form import RoutingForm


def mixtral(fields: Fields, architecture: str) -> ModelConfig:
    fields = fields.with_defaults(
        num_key_value_heads=8, rms_norm_eps=1e-5, rope_theta=1e6, num_local_experts=8, num_experts_per_tok=2
    )
    fields = fields.spelt(num_experts="num_local_experts")
    layers = (True,) * fields.positive("num_hidden_layers")
    experts = MoeConfig(_routing(fields, normalise=True), fields.positive("intermediate_size"), layers)
    return read_llama_like(fields, architecture, windows=read_windows(fields), moe=experts)


def qwen3_moe(fields: Fields, architecture: str) -> ModelConfig:
    fields = fields.with_defaults(
        num_key_value_heads=4, head_dim=128, num_experts_per_tok=8, moe_intermediate_size=768,
        num_experts=fields.get("num_local_experts", 128),  # as transformers 5 saves it
    )  # fmt: skip
    step, dense = fields.positive("decoder_sparse_step", 1), fields.get("mlp_only_layers", [])
    layers = tuple(
        (i + 1) % step == 0 and i not in dense for i in range(fields.positive("num_hidden_layers"))
    )
    routing = _routing(fields, normalise=fields.flag("norm_topk_prob"))
    experts = MoeConfig(routing, fields.positive("moe_intermediate_size"), layers)
    return read_llama_like(fields, architecture, windows=qwen_windows(fields), moe=experts)


def _routing(fields: Fields, **differences: Any) -> RoutingForm:
    num_experts, top_k = fields.positive("num_experts"), fields.positive("num_experts_per_tok")
    return RoutingForm(num_experts, top_k, **differences)
