"""Qwen3-MoE (arXiv 2505.09388): a Qwen3 in whose layers, or some of them, a mixture of experts takes the MLP's place."""

from __future__ import annotations

from lightllm.models.attention import separate_attention
from lightllm.models.base import DecoderLayer, TpPartBaseModel
from lightllm.models.builder import Builder
from lightllm.models.config import ModelConfig
from lightllm.models.decoder_layers import PreNormLayer
from lightllm.models.mlp import gated_mlp
from lightllm.models.moe import moe


class Qwen3MoeForCausalLM(TpPartBaseModel):
    def make_layer(self, config: ModelConfig, build: Builder, index: int) -> DecoderLayer:
        assert config.moe is not None
        weights = build.at("self_attn")
        qk_norm = weights.head_norm(("q_norm", "k_norm"), (config.num_heads, config.num_kv_heads))
        make_mlp = moe if config.moe.layers[index] else gated_mlp
        return PreNormLayer(
            build.norm("input_layernorm"),
            separate_attention(config, weights, index, qk_norm),
            build.norm("post_attention_layernorm"),
            make_mlp(config, build.at("mlp")),
        )
