"""GLM-4: half of each head rotated in adjacent pairs, biased q, k, v, gate and up in one tensor.

`Glm` is glm-4-9b with pre-norm layers; `Glm4` are GLM-4-0414 and later dense ones, with norms before and after.
"""

from __future__ import annotations

from lightllm.models.attention import Attention
from lightllm.models.base import DecoderLayer, TpPartBaseModel
from lightllm.models.builder import Builder
from lightllm.models.config import ModelConfig
from lightllm.models.decoder_layers import PreNormLayer, SandwichLayer
from lightllm.models.mlp import fused_gated_mlp


class GlmForCausalLM(TpPartBaseModel):
    def make_layer(self, config: ModelConfig, build: Builder, index: int) -> DecoderLayer:
        return PreNormLayer(
            build.norm("input_layernorm"),
            Attention(config, build.at("self_attn"), index),
            build.norm("post_attention_layernorm"),
            fused_gated_mlp(config, build.at("mlp")),
        )


class Glm4ForCausalLM(TpPartBaseModel):
    def make_layer(self, config: ModelConfig, build: Builder, index: int) -> DecoderLayer:
        return SandwichLayer(
            build.norm("input_layernorm"),
            Attention(config, build.at("self_attn"), index),
            build.norm("post_self_attn_layernorm"),
            build.norm("post_attention_layernorm"),
            fused_gated_mlp(config, build.at("mlp")),
            build.norm("post_mlp_layernorm"),
        )
