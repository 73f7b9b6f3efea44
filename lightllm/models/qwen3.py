"""Qwen3 (arXiv 2505.09388): a Llama whose queries and keys are normalised, head by head, before the rotation. Qwen3-MoE: in
all layers, or in some of them, a mixture of experts takes the MLP's place.
"""

from __future__ import annotations

from lightllm.models.attention import Attention
from lightllm.models.base import DecoderLayer, TpPartBaseModel
from lightllm.models.builder import Builder
from lightllm.models.config import ModelConfig
from lightllm.models.decoder_layers import PreNormLayer
from lightllm.models.mlp import gated_mlp
from lightllm.models.moe import moe


class Qwen3ForCausalLM(TpPartBaseModel):
    def make_layer(self, config: ModelConfig, build: Builder, index: int) -> DecoderLayer:
        weights = build.at("self_attn")
        qk_norm = weights.head_norm(("q_norm", "k_norm"), (config.num_heads, config.num_kv_heads))
        make_mlp = moe if config.moe and config.moe.layers[index] else gated_mlp
        return PreNormLayer(
            build.norm("input_layernorm"),
            Attention(config, weights, index, qk_norm=qk_norm),
            build.norm("post_attention_layernorm"),
            make_mlp(config, build.at("mlp")),
        )
